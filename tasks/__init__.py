"""One stage of a flow per file; pure logic in the files that start with an underscore."""
