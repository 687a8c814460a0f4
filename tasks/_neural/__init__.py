"""Networks for tables: their configuration, inputs, modules, rows, training, parallelism, checkpoints and export."""
