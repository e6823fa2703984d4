//! Ending a vCPU's run from outside: kicks from other threads, and the chunk timer.
//!
//! A run ends by a signal to the vCPU's thread. A signal that lands just before `KVM_RUN` would be
//! lost, so its handler sets `immediate_exit` in the run page of the thread it interrupts.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use super::host::KvmError;

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs; null on other threads.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

fn signal_number() -> i32 {
    libc::SIGRTMIN()
}

extern "C" fn on_signal(_: i32) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the run page is mapped for as long as the pointer is registered, and the byte is
        // only used atomically.
        let flag = unsafe { AtomicU8::from_ptr(flag) };
        flag.store(1, Ordering::Relaxed);
    }
}

/// Installs the handler once for the process.
fn install_handler() -> Result<(), KvmError> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        // SAFETY: zeroed is a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as *const () as usize;
        // SAFETY: the handler is async-signal-safe: it reads a const-initialised thread local and
        // stores a byte.
        let code = unsafe { libc::sigaction(signal_number(), &raw const action, ptr::null_mut()) };
        if code != 0 {
            let source = io::Error::last_os_error();
            result = Err(KvmError::Signal {
                what: "the kick signal",
                source,
            });
        }
    });
    result
}

/// Ends the current run of a vCPU from any thread. A kick that comes while the vCPU does not run
/// ends its next run at once, unless it is taken before.
#[derive(Debug)]
pub struct Kicker {
    thread: AtomicI32,
    requested: AtomicBool,
}

impl Kicker {
    pub(super) fn new() -> Self {
        Self {
            thread: AtomicI32::new(0),
            requested: AtomicBool::new(false),
        }
    }

    /// Asks the vCPU to end its run.
    pub fn kick(&self) {
        if self.requested.swap(true, Ordering::SeqCst) {
            return;
        }
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            let process = std::process::id();
            // SAFETY: a system call without pointers; a thread that is gone gives ESRCH.
            unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal_number()) };
        }
    }

    /// Whether a kick came since the last call.
    pub fn take(&self) -> bool {
        self.requested.swap(false, Ordering::SeqCst)
    }

    pub(super) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }
}

/// The calling thread as a vCPU's thread, with a chunk timer; ends with the value.
#[derive(Debug)]
pub(super) struct Attachment {
    immediate_exit: *mut u8,
    timer: libc::timer_t,
    fires_at: Option<Instant>,
}

// SAFETY: a timer belongs to the process; the value moves with the vCPU and is dropped on its
// thread or after it.
unsafe impl Send for Attachment {}

impl Attachment {
    /// Registers the calling thread. `immediate_exit` points into the vCPU's run page.
    pub(super) fn new(kicker: &Kicker, immediate_exit: *mut u8) -> Result<Self, KvmError> {
        install_handler()?;
        // SAFETY: a system call without pointers.
        let thread = unsafe { libc::gettid() };
        kicker.thread.store(thread, Ordering::SeqCst);
        // SAFETY: zeroed is a valid sigevent.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal_number();
        event.sigev_notify_thread_id = thread;
        let mut timer = ptr::null_mut();
        // SAFETY: both pointers are to live locals.
        let code =
            unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        if code != 0 {
            let source = io::Error::last_os_error();
            return Err(KvmError::Signal {
                what: "the chunk timer",
                source,
            });
        }
        let attachment = Self {
            immediate_exit,
            timer,
            fires_at: None,
        };
        attachment.focus();
        Ok(attachment)
    }

    /// From now on it is this vCPU that the thread runs: one thread may run several in turn.
    pub(super) fn focus(&self) {
        IMMEDIATE_EXIT.set(self.immediate_exit);
    }

    /// Sees to it that the timer fires at `latest` or before. Setting it costs a system call, and most
    /// chunks end long before theirs: so one that is set for an earlier moment is left alone, and a run
    /// that it ends too early goes on.
    pub(super) fn fire_by(&mut self, latest: Instant) {
        let now = Instant::now();
        let is_set = self.fires_at.is_some_and(|at| at > now && at <= latest);
        if !is_set {
            self.fires_at = Some(latest);
            // Zero would stop it.
            let after = latest.saturating_duration_since(now);
            self.arm(after.max(Duration::from_nanos(1)));
        }
    }

    fn arm(&self, after: Duration) {
        let value = libc::timespec {
            tv_sec: after.as_secs() as i64,
            tv_nsec: i64::from(after.subsec_nanos()),
        };
        let interval = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let spec = libc::itimerspec {
            it_interval: interval,
            it_value: value,
        };
        // SAFETY: our timer, and a pointer to a live local.
        unsafe { libc::timer_settime(self.timer, 0, &raw const spec, ptr::null_mut()) };
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
        // SAFETY: our timer, unused from here on.
        unsafe { libc::timer_delete(self.timer) };
    }
}
