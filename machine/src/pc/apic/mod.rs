//! Interrupt controllers: a local APIC for each vCPU, and an IOAPIC.
