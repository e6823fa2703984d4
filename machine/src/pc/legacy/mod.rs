//! What a PC has at its I/O ports: serial port, clocks and timers, power management, reset.
