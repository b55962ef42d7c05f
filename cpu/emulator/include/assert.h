// assert is emulator.h's: it reports block and thread.
