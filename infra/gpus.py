"""The GPUs of this machine that this process may use, asked of NVIDIA's driver."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

NAME_BYTES = 256
SUCCESS = 0


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    memory_bytes: int


def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA shows to this process, none where there is no driver.

    The driver itself is asked, so that CUDA_VISIBLE_DEVICES counts and no context is made, which would take memory of
    the device. It reads that variable once, when it is first asked.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if cuda.cuInit(0) != SUCCESS or cuda.cuDeviceGetCount(ctypes.byref(count)) != SUCCESS:
        return ()
    found = []
    for number in range(count.value):
        device, size, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(NAME_BYTES)
        cuda.cuDeviceGet(ctypes.byref(device), number)
        cuda.cuDeviceGetName(name, NAME_BYTES, device)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
        found.append(Gpu(name.value.decode(errors="replace"), size.value))
    return tuple(found)
