//! Properties of the interrupt controllers together, against simple models.

use std::collections::BTreeSet;

use proptest::prelude::*;
use samsara_commitlog::{GuestTime, VcpuIndex};

use super::registers::{EOI, ESR, ICR, ICR_HIGH, LDR, LVT_TIMER, SELF_IPI, SVR, SVR_ENABLE, TPR};
use super::{Apics, LocalApic, Locals, Mode, OwnRead, OwnWrite};

const NOW: GuestTime = GuestTime(1_000);

#[derive(Debug, Clone)]
struct Owns(Vec<(LocalApic, Option<Mode>)>);

impl Locals for Owns {
    fn local(&self, vcpu: VcpuIndex) -> LocalApic {
        self.0[usize::from(vcpu.0)].0
    }

    fn mode(&self, vcpu: VcpuIndex) -> Option<Mode> {
        self.0[usize::from(vcpu.0)].1
    }

    fn replace(&mut self, vcpu: VcpuIndex, local: LocalApic) {
        self.0[usize::from(vcpu.0)].0 = local;
    }
}

/// A machine whose chunks are single accesses.
struct Rig {
    apics: Apics,
    owns: Owns,
}

impl Rig {
    fn at_reset(vcpu_count: u8, mode: Mode) -> Self {
        let own = |id| (LocalApic::at_reset(id), Some(mode));
        Self {
            apics: Apics::new(vcpu_count),
            owns: Owns((0..vcpu_count).map(own).collect()),
        }
    }

    fn enabled(vcpu_count: u8, mode: Mode) -> Self {
        let mut rig = Self::at_reset(vcpu_count, mode);
        for vcpu in 0..vcpu_count {
            rig.write(vcpu, SVR, u64::from(SVR_ENABLE) | 0xff);
            if mode == Mode::X {
                rig.write(vcpu, LDR, 1 << (24 + vcpu));
            }
        }
        rig
    }

    fn write_at(&mut self, vcpu: u8, register: u16, value: u64, now: GuestTime) -> OwnWrite {
        let (local, mode) = &mut self.owns.0[usize::from(vcpu)];
        let mode = mode.unwrap();
        let result = local.write(mode, register, value);
        if result == OwnWrite::Shared {
            let vcpu = VcpuIndex(vcpu);
            self.apics
                .write(vcpu, mode, register, value, now, &mut self.owns);
        }
        result
    }

    fn write(&mut self, vcpu: u8, register: u16, value: u64) -> OwnWrite {
        self.write_at(vcpu, register, value, NOW)
    }

    fn command(&mut self, vcpu: u8, low: u32, destination: u32) {
        if self.owns.0[usize::from(vcpu)].1 == Some(Mode::X2) {
            self.write(vcpu, ICR, u64::from(destination) << 32 | u64::from(low));
        } else {
            self.write(vcpu, ICR_HIGH, u64::from(destination << 24));
            self.write(vcpu, ICR, low.into());
        }
    }

    fn redirect(&mut self, pin: u8, low: u32, destination: u8) {
        for (half, value) in [(1, u32::from(destination) << 24), (0, low)] {
            let select = u32::from(0x10 + 2 * pin + half);
            self.apics.ioapic_write(0x00, select, &self.owns);
            self.apics.ioapic_write(0x10, value, &self.owns);
        }
    }

    fn accept(&mut self, vcpu: u8) {
        let local = &mut self.owns.0[usize::from(vcpu)].0;
        local.accept(self.apics.shared_mut(VcpuIndex(vcpu)));
    }

    fn take(&mut self, vcpu: u8) -> Option<u8> {
        self.accept(vcpu);
        self.owns.0[usize::from(vcpu)].0.take()
    }

    /// Which vCPUs have an interrupt to take; takes and ends it.
    fn takers(&mut self, vector: u8) -> Vec<u8> {
        let mut takers = Vec::new();
        for vcpu in 0..self.owns.0.len() as u8 {
            if self.take(vcpu) == Some(vector) {
                self.write(vcpu, EOI, 0);
                takers.push(vcpu);
            }
        }
        takers
    }

    fn esr(&mut self, vcpu: u8) -> OwnRead {
        self.accept(vcpu);
        self.write(vcpu, ESR, 0);
        let (local, mode) = &self.owns.0[usize::from(vcpu)];
        local.read(mode.unwrap(), ESR)
    }
}

const LOGICAL: u32 = 1 << 11;
const LEVEL: u32 = 1 << 15;
const ASSERT: u32 = 1 << 14;

#[test]
fn commands_reach_their_destinations() {
    for mode in [Mode::X, Mode::X2] {
        let all = if mode == Mode::X { 0xff } else { u32::MAX };
        let mut rig = Rig::enabled(4, mode);
        for (low, destination, expected) in [
            (0x40, 2, vec![2]),
            (0x40, 9, vec![]),
            (0x40, all, vec![0, 1, 2, 3]),
            (0x40 | LOGICAL, 0b1010, vec![1, 3]),
            (0x40 | LOGICAL, all, vec![0, 1, 2, 3]),
            (0x140 | LOGICAL, 0b1100, vec![2]),
            (0x40 | 1 << 18, 2, vec![1]),
            (0x40 | 2 << 18, 2, vec![0, 1, 2, 3]),
            (0x40 | 3 << 18, 2, vec![0, 2, 3]),
            (0x240, all, vec![]),
            (0x740, all, vec![]),
        ] {
            rig.command(1, low, destination);
            assert_eq!(
                rig.takers(0x40),
                expected,
                "{mode:?} {low:#x} {destination:#x}"
            );
        }
    }
}

#[test]
fn clusters_are_of_four_in_xapic_and_of_sixteen_in_x2apic() {
    let mut rig = Rig::enabled(4, Mode::X);
    for vcpu in 0..4 {
        rig.write(vcpu, super::registers::DFR, 0);
        let id = u64::from(vcpu / 2 * 16 + (1 << (vcpu % 2)));
        rig.write(vcpu, LDR, id << 24);
    }
    rig.command(0, 0x40 | LOGICAL, 0x12);
    assert_eq!(rig.takers(0x40), [3]);
    rig.command(0, 0x40 | LOGICAL, 0xf1);
    assert_eq!(rig.takers(0x40), [0, 2]);

    let mut rig = Rig::enabled(20, Mode::X2);
    rig.command(0, 0x40 | LOGICAL, 0x1_0006);
    assert_eq!(rig.takers(0x40), [17, 18]);
    assert_eq!(rig.write(19, SELF_IPI, 0x41), OwnWrite::Shared);
    assert_eq!(rig.takers(0x41), [19]);
}

#[test]
fn init_start_up_and_nmi_go_to_the_mailbox_of_a_disabled_apic_too() {
    let mut rig = Rig::at_reset(2, Mode::X);
    rig.command(0, 0x400, 1);
    rig.command(0, 0x608, 1);
    rig.command(0, 0x40, 1);
    let mailbox = rig.apics.shared(VcpuIndex(1));
    assert!(mailbox.nmi && mailbox.sipi == Some(8) && !mailbox.has_interrupts());
    // INIT voids what came before; its de-assertion does nothing.
    rig.command(0, 0x500 | LEVEL | ASSERT, 1);
    rig.command(0, 0x699, 1);
    rig.command(0, 0x500 | LEVEL, 1);
    rig.command(0, 0x69a, 1);
    let mailbox = rig.apics.shared_mut(VcpuIndex(1));
    assert!(mailbox.init && !mailbox.nmi && mailbox.sipi == Some(0x99));
    mailbox.finish_init();
    assert_eq!((mailbox.init, mailbox.sipi), (false, Some(0x99)));
    assert!(rig.apics.shared(VcpuIndex(1)).has_work(true));
    assert!(!rig.apics.shared(VcpuIndex(0)).has_work(true));
}

#[test]
fn illegal_vectors_are_errors_of_sender_or_receiver() {
    let mut rig = Rig::enabled(2, Mode::X);
    rig.command(0, 0x0f, 1);
    assert_eq!(rig.esr(0), OwnRead::Value(1 << 5));
    assert_eq!(rig.esr(1), OwnRead::Value(0));
    rig.redirect(3, 0x0f, 1);
    rig.apics.pulse(3, &rig.owns);
    assert_eq!(rig.esr(1), OwnRead::Value(1 << 6));
    rig.write(1, LVT_TIMER, 0x0e);
    rig.write(1, super::registers::INITIAL_COUNT, 5);
    rig.apics.advance(GuestTime(5_000));
    assert_eq!(rig.esr(1), OwnRead::Value(1 << 6));
    assert_eq!(rig.take(1), None);
}

#[test]
fn a_level_is_sent_again_at_its_end_while_the_line_is_up() {
    let mut rig = Rig::enabled(2, Mode::X);
    rig.redirect(5, LEVEL | 0x50, 1);
    rig.apics.set_line(5, true, &rig.owns);
    assert_eq!(rig.take(1), Some(0x50));
    assert_eq!(rig.take(1), None);
    assert_eq!(rig.write(1, EOI, 0), OwnWrite::Shared);
    assert_eq!(rig.take(1), Some(0x50));
    rig.apics.set_line(5, false, &rig.owns);
    rig.write(1, EOI, 0);
    assert_eq!(rig.take(1), None);

    // A pulse during the service routine is not lost.
    rig.apics.pulse(5, &rig.owns);
    assert_eq!(rig.take(1), Some(0x50));
    rig.apics.pulse(5, &rig.owns);
    rig.apics.pulse(5, &rig.owns);
    rig.write(1, EOI, 0);
    assert_eq!(rig.take(1), Some(0x50));
    // The directed end does the same as the broadcast of the local APIC.
    rig.apics.ioapic_write(0x40, 0x50, &rig.owns);
    rig.write(1, EOI, 0);
    assert_eq!(rig.take(1), None);
    assert_eq!(rig.apics.ioapic_read(0x10), LEVEL | 0x50);
}

#[test]
fn disabling_masks_the_timer_and_keeps_what_had_come() {
    let mut rig = Rig::enabled(1, Mode::X);
    rig.write(0, LVT_TIMER, 0x60);
    rig.write(0, super::registers::INITIAL_COUNT, 100);
    assert_eq!(rig.apics.next_deadline(), Some(GuestTime(1_200)));
    rig.command(0, 0x70, 0);
    rig.write_at(0, SVR, 0xff, GuestTime(1_500));
    assert_eq!(rig.apics.next_deadline(), None);
    assert_eq!(rig.take(0), None);
    rig.write(0, SVR, 0x1ff);
    assert_eq!(rig.take(0), Some(0x70));
    rig.write(0, EOI, 0);
    assert_eq!(rig.take(0), Some(0x60));
    assert_eq!(rig.apics.read(VcpuIndex(0), LVT_TIMER, NOW), 0x1_0060);
}

#[test]
fn a_machine_from_outside_has_its_vcpus() {
    let apics = Apics::new(2);
    assert_eq!(apics.check(2), Ok(()));
    assert!(apics.check(3).is_err());
    let bytes = postcard::to_stdvec(&apics).unwrap();
    assert_eq!(postcard::from_bytes::<Apics>(&bytes).unwrap(), apics);
}

#[derive(Clone, Debug)]
enum Step {
    Send { from: u8, to: u8, vector: u8 },
    Take(u8),
    End(u8),
    Priority(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let vcpu = 0u8..3;
    prop_oneof![
        (vcpu.clone(), vcpu.clone(), 16u8..).prop_map(|(from, to, vector)| Step::Send {
            from,
            to,
            vector
        }),
        vcpu.clone().prop_map(Step::Take),
        vcpu.clone().prop_map(Step::End),
        (vcpu, any::<u8>()).prop_map(|(vcpu, priority)| Step::Priority(vcpu, priority)),
    ]
}

#[derive(Default, Clone)]
struct Model {
    requested: BTreeSet<u8>,
    in_service: Vec<u8>,
    priority: u8,
}

impl Model {
    fn take(&mut self) -> Option<u8> {
        let floor = self
            .in_service
            .last()
            .copied()
            .unwrap_or(0)
            .max(self.priority)
            >> 4;
        let vector = *self.requested.last()?;
        (vector >> 4 > floor).then(|| {
            self.requested.remove(&vector);
            self.in_service.push(vector);
            vector
        })
    }
}

proptest! {
    /// Vectors are taken in the order of priority, each as often as it was requested anew, and none is
    /// lost.
    #[test]
    fn interrupts_are_taken_as_the_model_says(steps in prop::collection::vec(step(), 0..200), is_x2: bool) {
        let mode = if is_x2 { Mode::X2 } else { Mode::X };
        let mut rig = Rig::enabled(3, mode);
        let mut models = vec![Model::default(); 3];
        for step in steps {
            match step {
                Step::Send { from, to, vector } => {
                    rig.command(from, vector.into(), to.into());
                    models[usize::from(to)].requested.insert(vector);
                }
                Step::Take(vcpu) => {
                    prop_assert_eq!(rig.take(vcpu), models[usize::from(vcpu)].take());
                }
                Step::End(vcpu) => {
                    rig.write(vcpu, EOI, 0);
                    models[usize::from(vcpu)].in_service.pop();
                }
                Step::Priority(vcpu, priority) => {
                    rig.write(vcpu, TPR, priority.into());
                    models[usize::from(vcpu)].priority = priority;
                }
            }
        }
        for (vcpu, model) in (0..).zip(&mut models) {
            rig.write(vcpu, TPR, 0);
            for _ in 0..model.in_service.len() {
                rig.write(vcpu, EOI, 0);
            }
            while let Some(vector) = rig.take(vcpu) {
                prop_assert_eq!(Some(vector), model.requested.pop_last());
                rig.write(vcpu, EOI, 0);
            }
            prop_assert!(model.requested.is_empty());
        }
    }

    /// Whatever a guest writes: no panic, and no vCPU has more to take than there are vectors.
    #[test]
    fn hostile_traffic_is_harmless(
        accesses in prop::collection::vec(
            (0u8..8, 0u8..3, prop_oneof![(0u16..0x40).prop_map(|n| n * 16), 0u16..0x1000],
             any::<u64>(), prop_oneof![0u64..10_000, any::<u64>()]), 0..300),
        is_x2: bool,
    ) {
        let mode = if is_x2 { Mode::X2 } else { Mode::X };
        let mut rig = Rig::at_reset(3, mode);
        for (kind, vcpu, register, value, time) in accesses {
            let now = GuestTime(time);
            match kind {
                0 => rig.apics.ioapic_write(value & 0x50, register.into(), &rig.owns),
                1 => rig.apics.ioapic_write(0x10, value as u32, &rig.owns),
                2 => rig.apics.pulse(value as u8 & 31, &rig.owns),
                3 => rig.apics.set_line(value as u8 & 31, value & 32 != 0, &rig.owns),
                4 => rig.apics.advance(now),
                5 => {
                    rig.take(vcpu);
                    rig.apics.read(VcpuIndex(vcpu), register, now);
                    let _ = rig.owns.0[usize::from(vcpu)].0.read(mode, register);
                }
                _ => {
                    rig.write_at(vcpu, register, value, now);
                    if value % 8 == 0 {
                        rig.write(vcpu, SVR, 0x1ff);
                    }
                }
            }
            rig.apics.ioapic_read(u64::from(register) & 0x70);
            prop_assert!(rig.apics.next_deadline().is_none_or(|due| due.0 > 0));
        }
        for vcpu in 0..3 {
            let mut taken = 0;
            while rig.take(vcpu).is_some() {
                taken += 1;
                prop_assert!(taken <= 256);
            }
        }
    }

    /// What a peer sends is a valid own part, and do no harm.
    #[test]
    fn any_bits_are_a_local_apic(words in prop::collection::vec(any::<u32>(), 38)) {
        let local = LocalApic::from_words(words.try_into().unwrap());
        let mut rig = Rig::at_reset(2, Mode::X);
        rig.owns.replace(VcpuIndex(1), local);
        rig.command(0, 0x40 | LOGICAL, 0x0f);
        rig.take(1);
        for register in (0..0x400).step_by(16) {
            let _ = local.read(Mode::X2, register);
            rig.write(1, register, u64::MAX);
        }
    }
}
