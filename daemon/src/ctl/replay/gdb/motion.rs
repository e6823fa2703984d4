//! Going through a log until there is a reason to stop, one commit at a time, so that it can be interrupted.
//!
//! Backward, commits that are kept are undone. What is before them is gone over *forward* from the checkpoint before it, noting
//! the last reason to stop, until where the way back had come: so a reason that is far away is found in about two passes, not in
//! one for each piece that is kept.

use samsara_commitlog::{CommitSeq, Record};

use super::stops::{Stop, Stops};
use super::timeline::Timeline;
use crate::ctl::CtlError;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Motion {
    /// One commit forward.
    Step,
    /// Forward until there is a reason to stop.
    Forward,
    /// One commit backward.
    StepBack,
    /// Backward until there is a reason to stop.
    Backward(Moved),
    /// The same, over commits that are not kept any more.
    Pass(Pass),
}

/// Whether a way back has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// The present state is where it begins: no reason to stop.
    NotYet,
    Already,
}

/// A part of the log that is gone over forward, to find the last reason to stop on the way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pass {
    /// The part is between the states after these commits.
    from: CommitSeq,
    until: CommitSeq,
    /// Whether its last state may be a reason to stop, too: nobody could tell before.
    is_last_new: bool,
    /// The state that the way back would stop at, and why.
    last: Option<(CommitSeq, Stop)>,
}

impl Motion {
    /// Goes on by a commit. Gives why it is over, if it is.
    pub(super) fn advance(
        &mut self,
        timeline: &mut Timeline,
        stops: &Stops,
    ) -> Result<Option<Stop>, CtlError> {
        match *self {
            Self::Step => {
                let stop = if timeline.forward()? {
                    Stop::Stepped
                } else {
                    Stop::End
                };
                Ok(Some(stop))
            }
            Self::Forward if timeline.forward()? => Ok(forward_reason(timeline, stops)),
            Self::Forward => Ok(Some(Stop::End)),
            Self::StepBack => step_back(timeline).map(Some),
            Self::Backward(_) if timeline.back()? => {
                *self = Self::Backward(Moved::Already);
                Ok(backward_reason(timeline, stops))
            }
            Self::Backward(moved) => self.pass_before(timeline, moved),
            Self::Pass(pass) if timeline.seq() >= pass.until => self.end_pass(pass, timeline),
            Self::Pass(mut pass) => {
                pass.advance(timeline, stops)?;
                *self = Self::Pass(pass);
                Ok(None)
            }
        }
    }

    /// Begins a pass over what is before the present state.
    fn pass_before(
        &mut self,
        timeline: &mut Timeline,
        moved: Moved,
    ) -> Result<Option<Stop>, CtlError> {
        let until = timeline.seq();
        if until <= timeline.first() {
            return Ok(Some(Stop::Begin));
        }
        let is_last_new = moved == Moved::Already && timeline.record().is_none();
        timeline.begin_before(CommitSeq(until.0 - 1))?;
        let from = timeline.seq();
        *self = Self::Pass(Pass {
            from,
            until,
            is_last_new,
            last: None,
        });
        // The log has lost what was before since it was opened.
        Ok((from >= until).then_some(Stop::Begin))
    }

    fn end_pass(&mut self, pass: Pass, timeline: &mut Timeline) -> Result<Option<Stop>, CtlError> {
        let (seq, stop) = match pass.last {
            Some((seq, stop)) => (seq, Some(stop)),
            None => (pass.from, None),
        };
        timeline.goto(seq)?;
        *self = Self::Backward(Moved::Already);
        Ok(stop)
    }
}

impl Pass {
    fn advance(&mut self, timeline: &mut Timeline, stops: &Stops) -> Result<(), CtlError> {
        if !timeline.forward()? {
            // There is a gap, or damage, before the checkpoint from which the way back has come.
            timeline.give_up_before(self.until)?;
            (self.from, self.last) = (timeline.first(), None);
            return Ok(());
        }
        let seq = timeline.seq();
        // The way back comes to the state after a commit first, then over the commit.
        if let Some(stop) = timeline.step().and_then(|step| stops.passed(step)) {
            self.last = Some((CommitSeq(seq.0 - 1), stop));
        }
        if seq < self.until || self.is_last_new {
            self.last = reached(timeline, stops).map_or(self.last, |stop| Some((seq, stop)));
        }
        Ok(())
    }
}

fn step_back(timeline: &mut Timeline) -> Result<Stop, CtlError> {
    if timeline.seq() <= timeline.first() {
        return Ok(Stop::Begin);
    }
    let before = CommitSeq(timeline.seq().0 - 1);
    timeline.goto(before)?;
    if timeline.seq() == before {
        return Ok(Stop::Stepped);
    }
    if timeline.seq() < before {
        timeline.give_up_before(before.next())?;
    }
    Ok(Stop::Begin)
}

fn forward_reason(timeline: &Timeline, stops: &Stops) -> Option<Stop> {
    let passed = timeline.step().and_then(|step| stops.passed(step));
    passed.or_else(|| reached(timeline, stops))
}

fn backward_reason(timeline: &Timeline, stops: &Stops) -> Option<Stop> {
    let passed = timeline.undone().and_then(|step| stops.passed(step));
    passed.or_else(|| reached(timeline, stops))
}

/// Whether the present state is a reason to stop.
fn reached(timeline: &Timeline, stops: &Stops) -> Option<Stop> {
    let chunk = timeline.record().and_then(Record::chunk);
    let at = chunk.map(|chunk| {
        let state = timeline.machine().vcpu(chunk.vcpu);
        (chunk.vcpu, state.regs().rip)
    });
    stops.reached(timeline.seq(), at)
}
