//! stub
/// Who walks a guest's page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// The processor: EPT, NPT.
    Second,
    /// KVM: shadow page tables.
    Shadow,
}

/// s
#[derive(Clone, Copy, Debug)]
pub struct HostTraits {
    /// p
    pub paging: Paging,
}
/// s
pub fn probe(_host: &super::Host) -> Result<HostTraits, super::KvmError> {
    Ok(HostTraits {
        paging: Paging::Shadow,
    })
}
