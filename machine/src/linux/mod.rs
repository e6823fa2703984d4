//! Linux guests: putting a kernel into memory, and the tables that tell it what the machine has.
