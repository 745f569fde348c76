"""What the tests share: the server under test, and the programs that are around it."""
