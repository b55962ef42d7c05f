// Nothing to add: emulator.h stands in front of every kernel.
