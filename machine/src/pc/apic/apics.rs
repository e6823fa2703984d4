//! All interrupt controllers of a machine, as committed.

use samsara_commitlog::{GuestTime, VcpuIndex};
use serde::{Deserialize, Serialize};

use super::ioapic::{IoApic, IoApicWrite, PIN_COUNT};
use super::local::checked_value;
use super::message::{Address, Delivery, Destination, Message};
use super::registers::{
    DIVIDE, EOI, ICR, INITIAL_COUNT, LVT_TIMER, SELF_IPI, SEND_ILLEGAL_VECTOR, SVR, SVR_ENABLE,
    VECTOR_MIN,
};
use super::shared::{SharedApic, Trigger};
use super::{LocalApic, Locals, Mode};

/// What is wrong with interrupt controllers from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupt controllers of {found} vCPUs, where the machine has {expected}")]
pub struct ApicFault {
    found: usize,
    expected: u8,
}

/// The shared parts of all local APICs, and the IOAPIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apics {
    shared: Vec<SharedApic>,
    ioapic: IoApic,
}

impl Apics {
    /// The state after power-up.
    pub fn new(vcpu_count: u8) -> Self {
        Self {
            shared: vec![SharedApic::at_reset(); vcpu_count.into()],
            ioapic: IoApic::new(),
        }
    }

    /// Checks a state from outside. Apart from the number of vCPUs there is none that could do harm.
    pub fn check(&self, vcpu_count: u8) -> Result<(), ApicFault> {
        if self.shared.len() == usize::from(vcpu_count) {
            return Ok(());
        }
        Err(ApicFault {
            found: self.shared.len(),
            expected: vcpu_count,
        })
    }

    /// A vCPU's shared part. The vCPU must exist.
    pub fn shared(&self, vcpu: VcpuIndex) -> &SharedApic {
        &self.shared[usize::from(vcpu.0)]
    }

    /// A vCPU's shared part, to take messages out. The vCPU must exist.
    pub fn shared_mut(&mut self, vcpu: VcpuIndex) -> &mut SharedApic {
        &mut self.shared[usize::from(vcpu.0)]
    }

    /// What a load from one of the timer's registers gives. The vCPU must exist.
    pub fn read(&self, vcpu: VcpuIndex, register: u16, now: GuestTime) -> u64 {
        self.shared(vcpu).read(register, now).into()
    }

    /// Does what [`LocalApic::write`] left to the commit. `vcpu` is the writer, and must exist; its own
    /// part in `locals` may change.
    pub fn write(
        &mut self,
        vcpu: VcpuIndex,
        mode: Mode,
        register: u16,
        value: u64,
        now: GuestTime,
        locals: &mut dyn Locals,
    ) {
        let Some(value) = checked_value(mode, register, value) else {
            return;
        };
        let mut local = locals.local(vcpu);
        let low = value as u32;
        match register {
            ICR => {
                let high = match mode {
                    Mode::X => local.icr_high(),
                    Mode::X2 => (value >> 32) as u32,
                };
                local.store_icr(low, high);
                self.command(vcpu, mode, low, high, &mut local, locals);
            }
            SELF_IPI => self.command(vcpu, mode, SHORTHAND_SELF | low, 0, &mut local, locals),
            LVT_TIMER | INITIAL_COUNT | DIVIDE => {
                let is_enabled = local.is_enabled();
                self.shared_mut(vcpu).write(register, low, now, is_enabled);
            }
            SVR => self.write_svr(vcpu, low, now, &mut local),
            EOI => {
                if let Some((vector, true)) = local.end_of_interrupt() {
                    self.end_of_interrupt(vector, locals);
                }
            }
            _ => local.store(register, low),
        }
        locals.replace(vcpu, local);
    }

    fn write_svr(&mut self, vcpu: VcpuIndex, value: u32, now: GuestTime, local: &mut LocalApic) {
        let mailbox = self.shared_mut(vcpu);
        if value & SVR_ENABLE == 0 {
            mailbox.mask_timer(now);
            // What has come until now stays requested.
            local.accept(mailbox);
        }
        local.store(SVR, value);
    }

    /// Sends what a command says.
    fn command(
        &mut self,
        sender: VcpuIndex,
        mode: Mode,
        low: u32,
        high: u32,
        local: &mut LocalApic,
        locals: &dyn Locals,
    ) {
        let Some(delivery) = Delivery::from_bits(low) else {
            return;
        };
        let vector = low as u8;
        if delivery.has_vector() && vector < VECTOR_MIN {
            local.raise(SEND_ILLEGAL_VECTOR);
            return;
        }
        // INIT level de-assert: nothing since the Pentium 4.
        let is_level = low & 1 << 15 != 0;
        if delivery == Delivery::Init && is_level && low & 1 << 14 == 0 {
            return;
        }
        let address = match mode {
            Mode::X => Address::Narrow((high >> 24) as u8),
            Mode::X2 => Address::Wide(high),
        };
        let destination = match low & 3 << 18 {
            0 => Destination::from_bits(low, address),
            SHORTHAND_SELF => Destination::One(sender),
            SHORTHAND_ALL => Destination::All,
            _ => Destination::AllBut(sender),
        };
        let message = Message {
            delivery,
            vector,
            // Between processors there are only edges, whatever the command says.
            trigger: Trigger::Edge,
            destination,
        };
        message.send(&mut self.shared, locals);
    }

    /// What a load from the IOAPIC's page gives.
    pub fn ioapic_read(&self, offset: u64) -> u32 {
        self.ioapic.read(offset)
    }

    /// Acts on a store to the IOAPIC's page.
    pub fn ioapic_write(&mut self, offset: u64, value: u32, locals: &dyn Locals) {
        match self.ioapic.write(offset, value) {
            IoApicWrite::Done => {}
            IoApicWrite::Entry(pin) => self.send(pin, self.ioapic.pending(pin), locals),
            IoApicWrite::EndOfInterrupt(vector) => self.end_of_interrupt(vector, locals),
        }
    }

    /// The line of an IOAPIC pin goes up and down again. On a level-triggered pin the line is up until its
    /// message has been accepted.
    pub fn pulse(&mut self, pin: u8, locals: &dyn Locals) {
        let message = self.ioapic.pulse(pin);
        self.send(pin, message, locals);
    }

    /// The line of an IOAPIC pin goes up or down.
    pub fn set_line(&mut self, pin: u8, high: bool, locals: &dyn Locals) {
        let message = self.ioapic.set_line(pin, high);
        self.send(pin, message, locals);
    }

    fn send(&mut self, pin: u8, message: Option<Message>, locals: &dyn Locals) {
        if message.is_some_and(|message| message.send(&mut self.shared, locals)) {
            self.ioapic.accepted(pin);
        }
    }

    fn end_of_interrupt(&mut self, vector: u8, locals: &dyn Locals) {
        for pin in 0..PIN_COUNT {
            if self.ioapic.end_of_interrupt(pin, vector) {
                self.send(pin, self.ioapic.pending(pin), locals);
            }
        }
    }

    /// Lets the timers that are due request their interrupts.
    pub fn advance(&mut self, now: GuestTime) {
        for mailbox in &mut self.shared {
            mailbox.advance(now);
        }
    }

    /// When the next timer will request an interrupt. Masked timers do not count.
    pub fn next_deadline(&self) -> Option<GuestTime> {
        self.shared
            .iter()
            .filter_map(SharedApic::next_deadline)
            .min()
    }
}

const SHORTHAND_SELF: u32 = 1 << 18;
const SHORTHAND_ALL: u32 = 2 << 18;
