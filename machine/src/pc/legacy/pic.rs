//! The pair of 8259 interrupt controllers, as registers only: interrupts come through the APICs. An
//! operating system finds them, sets them up and masks them.

use serde::{Deserialize, Serialize};

/// Master, commands.
pub(super) const MASTER: u16 = 0x20;
/// Master, mask.
pub(super) const MASTER_DATA: u16 = 0x21;
/// Slave, commands.
pub(super) const SLAVE: u16 = 0xa0;
/// Slave, mask.
pub(super) const SLAVE_DATA: u16 = 0xa1;
/// Trigger modes of the master's lines.
pub(super) const EDGE_LEVEL: u16 = 0x4d0;
/// Trigger modes of the slave's lines.
pub(super) const EDGE_LEVEL_LAST: u16 = 0x4d1;

const INITIALIZE: u8 = 1 << 4;
const SINGLE: u8 = 1 << 1;
const WITH_ICW4: u8 = 1;

/// What the next byte to the mask port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Next {
    #[default]
    Mask,
    Vectors,
    Cascade,
    Icw4,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Pic {
    icw1: u8,
    mask: u8,
    next: Next,
    edge_level: u8,
}

impl Pic {
    fn command(&mut self, value: u8) {
        // Everything else is about interrupts that are requested or in service: there are none.
        if value & INITIALIZE != 0 {
            self.icw1 = value;
            self.mask = 0;
            self.next = Next::Vectors;
        }
    }

    fn data(&mut self, value: u8) {
        let after_cascade = if self.icw1 & WITH_ICW4 != 0 {
            Next::Icw4
        } else {
            Next::Mask
        };
        self.next = match self.next {
            Next::Mask => {
                self.mask = value;
                Next::Mask
            }
            Next::Vectors if self.icw1 & SINGLE == 0 => Next::Cascade,
            Next::Vectors | Next::Cascade => after_cascade,
            Next::Icw4 => Next::Mask,
        };
    }
}

/// Master and slave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pics {
    master: Pic,
    slave: Pic,
}

impl Pics {
    pub(super) fn read(&self, port: u16) -> u8 {
        match port {
            MASTER_DATA => self.master.mask,
            SLAVE_DATA => self.slave.mask,
            EDGE_LEVEL => self.master.edge_level,
            EDGE_LEVEL_LAST => self.slave.edge_level,
            // Nothing is requested or in service.
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, port: u16, value: u8) {
        match port {
            MASTER => self.master.command(value),
            MASTER_DATA => self.master.data(value),
            SLAVE => self.slave.command(value),
            SLAVE_DATA => self.slave.data(value),
            EDGE_LEVEL => self.master.edge_level = value,
            EDGE_LEVEL_LAST => self.slave.edge_level = value,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_read_back_after_setting_up() {
        let mut pics = Pics::default();
        pics.write(MASTER_DATA, 0xfb);
        assert_eq!(pics.read(MASTER_DATA), 0xfb);
        for (port, value) in [(MASTER, 0x11), (MASTER_DATA, 0x30), (MASTER_DATA, 4)] {
            pics.write(port, value);
            assert_eq!(pics.read(MASTER_DATA), 0);
        }
        pics.write(MASTER_DATA, 1);
        pics.write(MASTER, 0x20);
        pics.write(MASTER_DATA, 0xff);
        assert_eq!((pics.read(MASTER_DATA), pics.read(SLAVE_DATA)), (0xff, 0));
        // Single, without a fourth word: the byte after the vectors is the mask.
        for (port, value) in [(SLAVE, 0x12), (SLAVE_DATA, 0x38), (SLAVE_DATA, 0xaa)] {
            pics.write(port, value);
        }
        assert_eq!(pics.read(SLAVE_DATA), 0xaa);
        pics.write(EDGE_LEVEL_LAST, 0x0c);
        assert_eq!((pics.read(EDGE_LEVEL_LAST), pics.read(MASTER)), (0x0c, 0));
    }
}
