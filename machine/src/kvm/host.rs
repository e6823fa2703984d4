//! What this host's KVM offers.

use kvm_bindings::{CpuId, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_IMMEDIATE_EXIT, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;

use super::cpu_model::{Cpu, CpuError, CpuLeaves};

/// The only version there is since 2007.
const API_VERSION: i32 = 12;

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open /dev/kvm (is virtualization enabled, and may this user use it?): {0}")]
    Open(kvm_ioctls::Error),
    /// `/dev/kvm` is something else.
    #[error("/dev/kvm is not KVM with API version {API_VERSION}: load the kvm module")]
    NotKvm,
    /// A capability is missing.
    #[error("this host's KVM lacks {0}, which recording needs; recording.mode = \"off\" may run")]
    Missing(&'static str),
    /// A request failed.
    #[error("KVM request {request} failed: {source}")]
    Request {
        /// Its name.
        request: &'static str,
        /// The kernel's answer.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The processor that guests should be shown needs more than there is.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// An instruction takes more device accesses than KVM does in one go.
    #[error("KVM does not finish an instruction that accesses device address {address:#x}")]
    Unfinished {
        /// The first address it accessed.
        address: u64,
    },
    /// A throwaway machine does not do what any should.
    #[error("cannot find out what kind of KVM this host has: {0}")]
    Probe(String),
    /// A signal handler or timer cannot be set up.
    #[error("cannot set up {what}: {source}")]
    Signal {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

impl KvmError {
    pub(crate) fn request(request: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |source| Self::Request { request, source }
    }
}

/// An open `/dev/kvm`.
#[derive(Debug)]
pub struct Host {
    pub(super) kvm: Kvm,
    supported: CpuId,
    pub(super) cpu: CpuLeaves,
    cpu_digest: u64,
    pub(super) msr_indices: Vec<u32>,
}

/// MSRs that are not guest state: they count, tell the time of the host, or belong to features that
/// guests are not given.
fn is_guest_state(index: u32) -> bool {
    let is_synthetic = (0x4000_0000..0x4000_1000).contains(&index);
    let is_kvm_clock = (0x4b56_4d00..0x4b56_4e00).contains(&index) || matches!(index, 0x11 | 0x12);
    let is_vmx = (0x480..0x4a0).contains(&index);
    let is_pmu = matches!(index, 0x186..=0x18f | 0xc1..=0xc8 | 0x309..=0x30c | 0x38d..=0x390
        | 0x3f1 | 0x3f2 | 0x345 | 0x4c1..=0x4c8 | 0x1a6 | 0x1a7 | 0x10a | 0xc001_0000..=0xc001_0007
        | 0xc001_0200..=0xc001_020b | 0xc000_0300..=0xc000_0302);
    !(is_synthetic || is_kvm_clock || is_vmx || is_pmu)
}

impl Host {
    /// Opens KVM.
    pub fn open() -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(KvmError::Open)?;
        if kvm.get_api_version() != API_VERSION {
            return Err(KvmError::NotKvm);
        }
        if kvm.check_extension_raw(KVM_CAP_IMMEDIATE_EXIT.into()) <= 0 {
            return Err(KvmError::Missing("KVM_CAP_IMMEDIATE_EXIT"));
        }
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::request("KVM_GET_SUPPORTED_CPUID"))?;
        let list = kvm
            .get_msr_index_list()
            .map_err(KvmError::request("KVM_GET_MSR_INDEX_LIST"))?;
        let msr_indices = list
            .as_slice()
            .iter()
            .copied()
            .filter(|&index| is_guest_state(index))
            .collect();
        let cpu = CpuLeaves::new(Cpu::default(), &supported)?;
        Ok(Self {
            kvm,
            cpu_digest: cpu.digest(),
            cpu,
            supported,
            msr_indices,
        })
    }

    /// Whether written pages can be reported, which recording needs.
    pub fn check_recording(&self) -> Result<(), KvmError> {
        if self.kvm.check_extension_raw(KVM_CAP_DIRTY_LOG_RING.into()) <= 0 {
            return Err(KvmError::Missing("KVM_CAP_DIRTY_LOG_RING"));
        }
        Ok(())
    }
}

impl Host {
    /// Sets the processor that vCPUs made from now on show their guest. Without this it is [`Cpu::default`].
    pub fn set_cpu(&mut self, cpu: Cpu) -> Result<(), KvmError> {
        self.cpu = CpuLeaves::new(cpu, &self.supported)?;
        let alike = Cpu {
            vcpu_count: Cpu::default().vcpu_count,
            ..cpu
        };
        self.cpu_digest = CpuLeaves::new(alike, &self.supported)?.digest();
        Ok(())
    }

    /// A digest of that processor: two hosts of one machine must have the same. The count of vCPUs is
    /// not part of it, because a machine brings its own.
    pub fn cpu_digest(&self) -> u64 {
        self.cpu_digest
    }

    /// The rate of vCPUs' TSC in kHz; none where it has no steady one.
    pub fn tsc_khz(&self) -> Result<Option<u32>, KvmError> {
        let vm = self.kvm.create_vm();
        let vm = vm.map_err(KvmError::request("KVM_CREATE_VM"))?;
        let vcpu = vm.create_vcpu(0);
        let vcpu = vcpu.map_err(KvmError::request("KVM_CREATE_VCPU"))?;
        Ok(vcpu.get_tsc_khz().ok().filter(|&khz| khz > 0))
    }

    /// The state components that guests may enable, as XCR0 has them; 0 without XSAVE.
    pub(crate) fn supported_xcr0(&self) -> u64 {
        self.cpu.xcr0()
    }
}
