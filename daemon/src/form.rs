//! In which form a chunk travels to a backup: as the bytes that it changed, or as the order to run it again.

use samsara_commitlog::{Chunk, VcpuIndex};
use samsara_config::RecordingForm;

/// With so many bytes not sent yet the network is what is slow.
const SLOW_BYTES: usize = 256 << 10;
/// Fewer bytes of effects are sent as fast as an order is run.
const ORDER_BYTES_MIN: usize = 4 << 10;
/// Chunks of a vCPU that travel as effects after one that came out differently; twice as many each time.
const EFFECTS_AFTER: u32 = 16;
const EFFECTS_AFTER_MAX: u32 = 1 << 16;

/// Chooses for one backup.
#[derive(Debug)]
pub(crate) struct FormChooser {
    form: RecordingForm,
    vcpus: Vec<Vcpu>,
}

/// What is known of a vCPU.
#[derive(Clone, Copy, Debug, Default)]
struct Vcpu {
    /// So many of its next chunks travel as effects.
    effects_left: u32,
    /// How many they were the last time.
    penalty: u32,
    /// Orders since it came out differently.
    orders: u32,
}

impl FormChooser {
    pub(crate) fn new(form: RecordingForm) -> Self {
        Self {
            form,
            vcpus: Vec::new(),
        }
    }

    /// Whether a chunk that can be run again travels as an order, while so many bytes wait to be sent.
    pub(crate) fn is_order(&mut self, chunk: &Chunk, unsent_bytes: usize) -> bool {
        let form = self.form;
        let vcpu = self.vcpu(chunk.vcpu);
        if vcpu.effects_left > 0 {
            vcpu.effects_left -= 1;
            return false;
        }
        let is_order = match form {
            RecordingForm::Effects => false,
            RecordingForm::Order => true,
            RecordingForm::Auto => {
                unsent_bytes >= SLOW_BYTES && chunk.effects.encoded_bytes() >= ORDER_BYTES_MIN
            }
        };
        if is_order {
            vcpu.orders = vcpu.orders.saturating_add(1);
            if vcpu.orders > 4 * vcpu.penalty.max(EFFECTS_AFTER) {
                vcpu.penalty = 0;
            }
        }
        is_order
    }

    /// A chunk came out differently on the backup.
    pub(crate) fn diverged(&mut self, vcpu: VcpuIndex) {
        let vcpu = self.vcpu(vcpu);
        if vcpu.effects_left > 0 && vcpu.orders == 0 {
            // It was under way when the first came out differently.
            return;
        }
        let penalty = (2 * vcpu.penalty).clamp(EFFECTS_AFTER, EFFECTS_AFTER_MAX);
        *vcpu = Vcpu {
            effects_left: penalty,
            penalty,
            orders: 0,
        };
    }

    fn vcpu(&mut self, index: VcpuIndex) -> &mut Vcpu {
        let index = usize::from(index.0);
        if self.vcpus.len() <= index {
            self.vcpus.resize(index + 1, Vcpu::default());
        }
        &mut self.vcpus[index]
    }
}

#[cfg(test)]
mod tests {
    use samsara_commitlog::{Boundary, ByteRunsBuilder, CommitSeq, Effects, Exit};

    use super::*;

    fn chunk(bytes: usize) -> Chunk {
        let mut runs = ByteRunsBuilder::default();
        runs.push(0, &vec![1; bytes]);
        Chunk {
            vcpu: VcpuIndex(1),
            started_after: CommitSeq(1),
            boundary: Boundary::Exit,
            exit: Exit::Cut,
            effects: Effects {
                memory: runs.finish(),
                ..Effects::default()
            },
            digest: 0,
        }
    }

    #[test]
    fn orders_spare_a_slow_network() {
        let mut chooser = FormChooser::new(RecordingForm::Auto);
        assert!(!chooser.is_order(&chunk(100_000), 0));
        assert!(!chooser.is_order(&chunk(100), SLOW_BYTES));
        assert!(chooser.is_order(&chunk(100_000), SLOW_BYTES));
        assert!(!FormChooser::new(RecordingForm::Effects).is_order(&chunk(100_000), SLOW_BYTES));
        assert!(FormChooser::new(RecordingForm::Order).is_order(&chunk(1), 0));
    }

    #[test]
    fn a_vcpu_that_keeps_diverging_travels_as_effects() {
        let mut chooser = FormChooser::new(RecordingForm::Order);
        let mut until_order = || {
            chooser.diverged(VcpuIndex(1));
            let effects = (0..).take_while(|_| !chooser.is_order(&chunk(1), 0));
            effects.count() as u32
        };
        assert_eq!(until_order(), EFFECTS_AFTER);
        assert_eq!(until_order(), 2 * EFFECTS_AFTER);
        assert_eq!(until_order(), 4 * EFFECTS_AFTER);
        // It goes well for long enough.
        for _ in 0..16 * EFFECTS_AFTER {
            assert!(chooser.is_order(&chunk(1), 0));
        }
        chooser.diverged(VcpuIndex(1));
        let effects = (0..).take_while(|_| !chooser.is_order(&chunk(1), 0));
        assert_eq!(effects.count() as u32, EFFECTS_AFTER);
    }
}
