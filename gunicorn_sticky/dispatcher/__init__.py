"""The dispatcher's process: accepts connections, finds their keys, and passes them to the workers."""
