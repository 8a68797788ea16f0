// Nothing to call: linking runtime.c is enough.
