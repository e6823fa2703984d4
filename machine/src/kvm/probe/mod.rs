//! stub
/// Who walks a guest's page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// The processor: EPT, NPT.
    Second,
    /// KVM: shadow page tables.
    Shadow,
}
