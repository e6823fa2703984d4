//! Whether a host that dials may become the backup.

use super::disk::{DiskHistory, DiskShape, KeptDisks, difference, place};
use super::message::{
    Hello, PROTOCOL_VERSIONS, PeerRole, Refusal, RefuseReason, SessionToken, Welcome,
};

/// What a primary presents and demands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrimaryIdentity {
    /// Name of the virtual machine.
    pub vm: String,
    /// This host's name.
    pub host: String,
    /// Its term.
    pub term: u64,
    /// Version of the commit log it writes.
    pub log_version: u32,
    /// vCPUs of the machine.
    pub vcpu_count: u8,
    /// Guest memory, in bytes.
    pub memory_bytes: u64,
    /// Length of the input file, if it has one.
    pub input_bytes: Option<u64>,
    /// The machine's disks.
    pub disks: Vec<DiskShape>,
    /// The history that they are part of, if there are any.
    pub disk_history: Option<DiskHistory>,
    /// No chunk travels as the order to run it again.
    pub effects_only: bool,
    /// Term of the history that this host's disks were part of when the guest started here, once it
    /// runs: a disk of a later one that is not this guest's has what this guest never had, and is not
    /// overwritten.
    pub disk_term: Option<u64>,
    /// Digest of the processor that the guest is shown, without the count of vCPUs.
    pub cpu_digest: Option<u64>,
    /// Rate in kHz of the TSC by which the guest keeps time, if it does.
    pub tsc_khz: Option<u64>,
}

/// TSCs whose rates differ by no more than one part in so many count as equal: guests' time
/// synchronisation makes up for that.
const TSC_RATE_PARTS: u64 = 1000;

/// What this host answers to those who dial it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is primary and takes a backup.
    Primary(PrimaryIdentity),
    /// It is no primary (now).
    NotPrimary {
        /// This host's name.
        host: String,
        /// The highest term it knows of.
        term: u64,
        /// Its disks, if they have a place in the VM's history.
        disks: Option<KeptDisks>,
    },
}

/// Answers a `Hello`. `backup` is the name of the backup that is connected already; `token` is
/// random, of this session alone.
pub fn admit(
    admission: &Admission,
    backup: Option<&str>,
    hello: &Hello,
    token: SessionToken,
) -> Result<Welcome, Refusal> {
    let me = match admission {
        Admission::Primary(identity) => identity,
        Admission::NotPrimary { host, term, disks } => {
            let newer = newer_disks(host, disks.as_ref(), hello);
            let not_primary = || (RefuseReason::NotPrimary, format!("{host} is not primary"));
            let (reason, text) = newer.unwrap_or_else(not_primary);
            let term = *term;
            return Err(Refusal { reason, term, text });
        }
    };
    let refuse = |reason, text| Refusal {
        reason,
        term: me.term,
        text,
    };
    let protocol = PROTOCOL_VERSIONS.common(hello.protocol);
    let protocol = protocol.ok_or_else(|| {
        let text = format!(
            "{} speaks protocol version {PROTOCOL_VERSIONS}, {} speaks {}: run the same release on both hosts",
            me.host, hello.host, hello.protocol
        );
        refuse(RefuseReason::WrongVersion, text)
    })?;
    match mismatch(me, hello).or_else(|| busy(me, backup, hello)) {
        Some((reason, text)) => Err(refuse(reason, text)),
        None => Ok(Welcome {
            protocol,
            host: me.host.clone(),
            term: me.term,
            vcpu_count: me.vcpu_count,
            memory_bytes: me.memory_bytes,
            input_bytes: me.input_bytes,
            token,
            disk_history: me.disk_history,
            effects_only: me.effects_only,
        }),
    }
}

fn mismatch(me: &PrimaryIdentity, hello: &Hello) -> Option<(RefuseReason, String)> {
    let (mine, theirs) = (&me.host, &hello.host);
    if hello.vm != me.vm {
        let text = format!(
            "{mine} runs the vm \"{}\", {theirs} asks for \"{}\": set the same vm.name on both hosts",
            me.vm, hello.vm
        );
        return Some((RefuseReason::WrongVm, text));
    }
    if mine == theirs {
        let text = format!(
            "both hosts are called {mine}: set replication.host_name, or give each a certificate of its own name"
        );
        return Some((RefuseReason::SameName, text));
    }
    if hello.role == PeerRole::Primary {
        let text = format!(
            "{mine} is primary of \"{}\" in term {}: start {theirs} with --role backup",
            me.vm, me.term
        );
        return Some((RefuseReason::AlsoPrimary, text));
    }
    if hello.log_version != me.log_version {
        let text = format!(
            "{mine} writes commit log version {}, {theirs} reads {}: run the same release on both hosts",
            me.log_version, hello.log_version
        );
        return Some((RefuseReason::WrongVersion, text));
    }
    if hello.vcpu_max < me.vcpu_count || hello.memory_bytes_max < me.memory_bytes {
        let text = format!(
            "\"{}\" has {} vCPUs and {} bytes of memory, {theirs} can run {} and {}",
            me.vm, me.vcpu_count, me.memory_bytes, hello.vcpu_max, hello.memory_bytes_max
        );
        return Some((RefuseReason::ShapeNotSupported, text));
    }
    if hello.input_bytes != me.input_bytes {
        let text = format!(
            "input file of {} on {mine}, {} on {theirs}: set vm.input to the same file on both hosts",
            file_length(me.input_bytes),
            file_length(hello.input_bytes)
        );
        return Some((RefuseReason::InputMismatch, text));
    }
    processor_mismatch(me, hello).or_else(|| disk_mismatch(me, hello))
}

/// What a host does not say cannot differ: it runs an older build, or has no steady TSC.
fn processor_mismatch(me: &PrimaryIdentity, hello: &Hello) -> Option<(RefuseReason, String)> {
    let (mine, theirs) = (&me.host, &hello.host);
    let digests = me.cpu_digest.zip(hello.cpu_digest);
    if digests.is_some_and(|(mine, theirs)| mine != theirs) {
        let text = format!(
            "guests on {mine} and {theirs} are shown different processors: set the same vm.cpu on both hosts, \
             \"baseline\" if one lacks features of the other; hosts of different processor vendors cannot be paired"
        );
        return Some((RefuseReason::CpuMismatch, text));
    }
    let (my_khz, their_khz) = me.tsc_khz.zip(hello.tsc_khz)?;
    let differs = my_khz.abs_diff(their_khz) > my_khz.min(their_khz) / TSC_RATE_PARTS;
    differs.then(|| {
        let text = format!(
            "the TSC counts at {my_khz} kHz on {mine}, at {their_khz} kHz on {theirs}, and a Linux guest keeps \
             time by it: pair hosts whose TSCs have the same rate"
        );
        (RefuseReason::TscMismatch, text)
    })
}

fn disk_mismatch(me: &PrimaryIdentity, hello: &Hello) -> Option<(RefuseReason, String)> {
    let (mine, theirs) = (&me.host, &hello.host);
    if let Some(text) = difference((mine, &me.disks), (theirs, &hello.disks)) {
        return Some((RefuseReason::DiskMismatch, text));
    }
    let (position, term) = hello.disk_position.zip(me.disk_term)?;
    let is_ours = me
        .disk_history
        .is_some_and(|ours| ours.incarnation == position.history.incarnation);
    (position.history.term > term && !is_ours).then(|| {
        let text = format!(
            "the disk of {theirs} ({position}) has what the guest on {mine} was started without \
             (term {term}): to give that up, remove the .samsara file beside the image on {theirs}"
        );
        (RefuseReason::NewerDisk, text)
    })
}

/// Whether a host that is about to start the guest must not, because this one has the newer disks.
fn newer_disks(
    host: &str,
    disks: Option<&KeptDisks>,
    hello: &Hello,
) -> Option<(RefuseReason, String)> {
    let disks = disks.filter(|disks| disks.vm == hello.vm && !hello.disks.is_empty())?;
    let theirs = hello.disk_position.as_ref();
    let starts = hello.role == PeerRole::Primary;
    (starts && disks.position.is_newer_than(theirs)).then(|| {
        let text = format!(
            "the disk of {host} ({}) is newer than that of {} ({}): start {host} as the primary",
            disks.position,
            hello.host,
            place(theirs)
        );
        (RefuseReason::NewerDisk, text)
    })
}

fn busy(
    me: &PrimaryIdentity,
    backup: Option<&str>,
    hello: &Hello,
) -> Option<(RefuseReason, String)> {
    let text = format!(
        "{} has {} as its backup already, {} must wait",
        me.host, backup?, hello.host
    );
    Some((RefuseReason::Busy, text))
}

fn file_length(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "none".to_owned(), |bytes| format!("{bytes} bytes"))
}
