//! A vCPU's shared part of its local APIC: committed state, changed by devices and other vCPUs.

use samsara_commitlog::GuestTime;
use serde::{Deserialize, Serialize};

use super::registers::{
    CURRENT_COUNT, DIVIDE, INITIAL_COUNT, LVT_READ_ONLY, LVT_TIMER, MASKED, RECEIVE_ILLEGAL_VECTOR,
    VECTOR_MIN,
};
use super::timer::Timer;
use super::vectors::Vectors;

/// How an interrupt request behaves at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trigger {
    Edge,
    Level,
}

/// What others sent to a vCPU and its own part has not taken over yet, and the timer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedApic {
    irr: Vectors,
    level: Vectors,
    errors: u32,
    /// An NMI waits.
    pub nmi: bool,
    /// An INIT waits. It comes before everything else in the mailbox.
    pub init: bool,
    /// A start-up message waits, with the page that the vCPU is to start at. It came after the INIT, if
    /// there is one.
    pub sipi: Option<u8>,
    timer: Timer,
}

impl SharedApic {
    /// The state after power-up.
    pub fn at_reset() -> Self {
        Self {
            irr: Vectors::default(),
            level: Vectors::default(),
            errors: 0,
            nmi: false,
            init: false,
            sipi: None,
            timer: Timer::at_reset(),
        }
    }

    /// Whether anything waits for the vCPU. A non-maskable interrupt counts if the vCPU accepts it now.
    pub fn has_work(&self, accepts_nmi: bool) -> bool {
        self.has_interrupts() || self.nmi && accepts_nmi || self.init || self.sipi.is_some()
    }

    /// Whether [`super::LocalApic::accept`] would take over anything.
    pub fn has_interrupts(&self) -> bool {
        !self.irr.is_empty() || self.errors != 0
    }

    /// The vCPU has been reset for the INIT that waited. What was sent after that stays, but for
    /// interrupts: a reset APIC is disabled, and drops them.
    pub fn finish_init(&mut self) {
        self.init = false;
        self.take_interrupts();
    }

    pub(super) fn take_interrupts(&mut self) -> (Vectors, Vectors, u32) {
        let taken = (self.irr, self.level, self.errors);
        (self.irr, self.level, self.errors) = (Vectors::default(), Vectors::default(), 0);
        taken
    }

    /// Requests an interrupt; an illegal vector is noted as an error instead. Whether it was requested.
    pub(super) fn post(&mut self, vector: u8, trigger: Trigger) -> bool {
        if vector < VECTOR_MIN {
            self.errors |= RECEIVE_ILLEGAL_VECTOR;
            return false;
        }
        self.irr.insert(vector);
        match trigger {
            Trigger::Edge => self.level.remove(vector),
            Trigger::Level => self.level.insert(vector),
        }
        true
    }

    /// An INIT arrives: what came before it is void, and the timer stops.
    pub(super) fn post_init(&mut self) {
        *self = Self {
            init: true,
            ..Self::at_reset()
        };
    }

    /// What a load from one of the timer's registers gives.
    pub(super) fn read(&self, register: u16, now: GuestTime) -> u32 {
        match register {
            LVT_TIMER => self.timer.lvt(),
            INITIAL_COUNT => self.timer.initial(),
            CURRENT_COUNT => self.timer.current(now),
            DIVIDE => self.timer.divide(),
            _ => 0,
        }
    }

    /// Acts on a store to one of the timer's registers.
    pub(super) fn write(&mut self, register: u16, value: u32, now: GuestTime, is_enabled: bool) {
        // What was due by the old settings comes before the new ones.
        self.advance(now);
        match register {
            LVT_TIMER => {
                let forced = if is_enabled { 0 } else { MASKED };
                self.timer.set_lvt(value & !LVT_READ_ONLY | forced);
            }
            INITIAL_COUNT => self.timer.set_initial(value, now),
            DIVIDE => self.timer.set_divide(value, now),
            _ => {}
        }
    }

    /// The APIC is disabled: the timer's vector is masked with the others.
    pub(super) fn mask_timer(&mut self, now: GuestTime) {
        self.advance(now);
        self.timer.mask();
    }

    pub(super) fn advance(&mut self, now: GuestTime) {
        if let Some(vector) = self.timer.advance(now) {
            self.post(vector, Trigger::Edge);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<GuestTime> {
        self.timer.next_deadline()
    }
}
