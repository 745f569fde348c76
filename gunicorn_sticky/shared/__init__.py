"""What several processes share: memory, descriptors, and what each of them needs for these."""
