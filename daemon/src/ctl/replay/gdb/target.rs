//! A replay as gdbstub's target: each vCPU is a thread, each commit a step.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use gdbstub::common::{Signal, Tid};
use gdbstub::outputln;
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::reverse_exec::{
    ReplayLogPosition, ReverseCont, ReverseContOps, ReverseStep, ReverseStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use samsara_commitlog::{CommitSeq, VcpuIndex};

use super::monitor;
use super::motion::{Motion, Moved};
use super::registers::{Vcpu, VcpuRegisters};
use super::stops::{Stop, Stops};
use super::timeline::Timeline;
use crate::ctl::CtlError;

/// Errors of the remote protocol, which are those of Linux.
const EPERM: u8 = 1;
const EFAULT: u8 = 14;

/// What gdb looks at.
pub(super) struct Session {
    pub(super) timeline: Timeline,
    stops: Stops,
    motion: Motion,
    /// The vCPU that gdb looked at last.
    focus: VcpuIndex,
}

impl Session {
    pub(super) fn new(timeline: Timeline) -> Self {
        Self {
            timeline,
            stops: Stops::default(),
            motion: Motion::Step,
            focus: VcpuIndex(0),
        }
    }

    /// The vCPU that gdb looked at last.
    pub(super) fn focus(&self) -> VcpuIndex {
        self.focus
    }

    /// The commits to be stopped at.
    pub(super) fn commits(&mut self) -> &mut BTreeSet<CommitSeq> {
        self.stops.commits()
    }

    /// Goes on by a commit, in the direction that gdb wants. Gives why the replay stands, if it does.
    pub(super) fn advance(&mut self) -> Result<Option<MultiThreadStopReason<u64>>, CtlError> {
        let stop = self.motion.advance(&mut self.timeline, &self.stops)?;
        Ok(stop.map(|stop| self.reason(stop)))
    }

    /// Stops where it is, as gdb's user wants it to.
    pub(super) fn interrupted(&self) -> MultiThreadStopReason<u64> {
        signal(self.focus, Signal::SIGINT)
    }

    fn reason(&mut self, stop: Stop) -> MultiThreadStopReason<u64> {
        match stop {
            Stop::Stepped | Stop::Commit => signal(self.focus, Signal::SIGTRAP),
            Stop::Watch { vcpu, address } => {
                self.focus = vcpu.unwrap_or(self.focus);
                MultiThreadStopReason::Watch {
                    tid: tid_of(self.focus),
                    kind: WatchKind::Write,
                    addr: address,
                }
            }
            Stop::Break(vcpu) => {
                self.focus = vcpu;
                MultiThreadStopReason::SwBreak(tid_of(vcpu))
            }
            Stop::Begin => self.replay_log(ReplayLogPosition::Begin),
            Stop::End => self.replay_log(ReplayLogPosition::End),
        }
    }

    fn replay_log(&self, pos: ReplayLogPosition) -> MultiThreadStopReason<u64> {
        let tid = Some(tid_of(self.focus));
        MultiThreadStopReason::ReplayLog { tid, pos }
    }

    /// The vCPU of a thread that gdb names.
    fn vcpu(&self, tid: Tid) -> TargetResult<VcpuIndex, Self> {
        let index = tid.get() - 1;
        let count = usize::from(self.timeline.machine().shape().vcpu_count);
        if index < count {
            Ok(VcpuIndex(index as u8))
        } else {
            Err(TargetError::NonFatal)
        }
    }

    /// A vCPU that gdb is to stay with. One that is not there changes nothing.
    fn look_at(&mut self, tid: Tid) {
        if let Ok(vcpu) = self.vcpu(tid) {
            self.focus = vcpu;
        }
    }
}

fn signal(vcpu: VcpuIndex, signal: Signal) -> MultiThreadStopReason<u64> {
    MultiThreadStopReason::SignalWithThread {
        tid: tid_of(vcpu),
        signal,
    }
}

/// gdb counts threads from 1.
fn tid_of(vcpu: VcpuIndex) -> Tid {
    NonZeroUsize::MIN.saturating_add(vcpu.0.into())
}

impl Target for Session {
    type Arch = Vcpu;
    type Error = CtlError;

    fn base_ops(&mut self) -> BaseOps<'_, Vcpu, CtlError> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Session {
    fn read_registers(&mut self, regs: &mut VcpuRegisters, tid: Tid) -> TargetResult<(), Self> {
        let vcpu = self.vcpu(tid)?;
        self.focus = vcpu;
        *regs = VcpuRegisters::of(self.timeline.machine(), vcpu);
        Ok(())
    }

    fn write_registers(&mut self, _: &VcpuRegisters, _: Tid) -> TargetResult<(), Self> {
        Err(TargetError::Errno(EPERM))
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let vcpu = self.vcpu(tid)?;
        let count = self.timeline.machine().read_virtual(vcpu, start, data);
        if count == 0 && !data.is_empty() {
            return Err(TargetError::Errno(EFAULT));
        }
        Ok(count)
    }

    fn write_addrs(&mut self, _: u64, _: &[u8], _: Tid) -> TargetResult<(), Self> {
        Err(TargetError::Errno(EPERM))
    }

    fn list_active_threads(&mut self, each: &mut dyn FnMut(Tid)) -> Result<(), CtlError> {
        let count = self.timeline.machine().shape().vcpu_count;
        (0..count).for_each(|vcpu| each(tid_of(VcpuIndex(vcpu))));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Session {
    fn thread_extra_info(&self, tid: Tid, buf: &mut [u8]) -> Result<usize, CtlError> {
        let Ok(vcpu) = self.vcpu(tid) else {
            return Ok(0);
        };
        let text = monitor::vcpu_text(self.timeline.machine(), vcpu);
        let count = text.len().min(buf.len());
        buf[..count].copy_from_slice(&text.as_bytes()[..count]);
        Ok(count)
    }
}

impl MultiThreadResume for Session {
    /// Whoever waits for the stop goes on.
    fn resume(&mut self) -> Result<(), CtlError> {
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), CtlError> {
        self.motion = Motion::Forward;
        Ok(())
    }

    /// A replay cannot deliver signals.
    fn set_resume_action_continue(&mut self, _: Tid, _: Option<Signal>) -> Result<(), CtlError> {
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_reverse_step(&mut self) -> Option<ReverseStepOps<'_, Tid, Self>> {
        Some(self)
    }

    fn support_reverse_cont(&mut self) -> Option<ReverseContOps<'_, Tid, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Session {
    /// The next commit, whichever vCPU's: they are one history.
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), CtlError> {
        self.motion = Motion::Step;
        self.look_at(tid);
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Session {
    /// The others cannot be held: what they did is in the log.
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), CtlError> {
        Ok(())
    }
}

impl ReverseStep<Tid> for Session {
    /// gdb does not say here which thread its user looks at.
    fn reverse_step(&mut self, _: Tid) -> Result<(), CtlError> {
        self.motion = Motion::StepBack;
        Ok(())
    }
}

impl ReverseCont<Tid> for Session {
    fn reverse_cont(&mut self) -> Result<(), CtlError> {
        self.motion = Motion::Backward(Moved::NotYet);
        Ok(())
    }
}

impl Breakpoints for Session {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Session {
    fn add_sw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        self.stops.add_address(addr);
        Ok(true)
    }

    fn remove_sw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.stops.remove_address(addr))
    }
}

impl HwBreakpoint for Session {
    fn add_hw_breakpoint(&mut self, addr: u64, kind: usize) -> TargetResult<bool, Self> {
        self.add_sw_breakpoint(addr, kind)
    }

    fn remove_hw_breakpoint(&mut self, addr: u64, kind: usize) -> TargetResult<bool, Self> {
        self.remove_sw_breakpoint(addr, kind)
    }
}

impl HwWatchpoint for Session {
    /// What is read is in no log.
    fn add_hw_watchpoint(
        &mut self,
        addr: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        let machine = self.timeline.machine();
        Ok(kind == WatchKind::Write && self.stops.watch(machine, self.focus, addr, len))
    }

    fn remove_hw_watchpoint(
        &mut self,
        addr: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(kind == WatchKind::Write && self.stops.unwatch(addr, len))
    }
}

impl MonitorCmd for Session {
    fn handle_monitor_cmd(
        &mut self,
        cmd: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), CtlError> {
        let text = monitor::answer(self, &String::from_utf8_lossy(cmd))?;
        outputln!(out, "{}", text.trim_end());
        Ok(())
    }
}
