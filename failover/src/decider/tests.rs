//! Single decisions, where the simulation is a blunt tool: refusals, the operator, and what people are told.

use super::*;
use crate::arbiter::{ArbiterError, ArbiterRequest, Swap};
use crate::standing::{HostName, Phase, Revision, Standing, Versioned};

fn settings(settled_by: SettledBy) -> Settings {
    let name = |name: &str| HostName::new(name).unwrap();
    Settings {
        settled_by,
        ..Settings::new(name("beta"), name("alpha"))
    }
}

fn at(ms: u64) -> Moment {
    Moment::from_ms(ms)
}

fn found(term: u64, holder: &str, phase: Phase) -> ArbiterAnswer {
    let value = Standing::new(Term::new(term), HostName::new(holder).unwrap(), phase);
    ArbiterAnswer::Read(Ok(Some(Versioned {
        revision: Revision(9),
        value,
    })))
}

fn drain(decider: &mut Decider) -> Vec<Action> {
    std::iter::from_fn(|| decider.poll_action()).collect()
}

/// A backup that was in sync in term 4 and has lost its primary.
fn claiming(settled_by: SettledBy) -> Decider {
    let mut decider = Decider::backup(settings(settled_by), at(0));
    let (session, term) = (SessionId(1), Term::new(4));
    decider.handle(at(1), Event::PrimaryFound { session, term });
    decider.handle(
        at(2),
        Event::InSync {
            session,
            term,
            mark: SyncMark(1),
        },
    );
    assert!(drain(&mut decider).contains(&Action::Join {
        session,
        gave_up: None
    }));
    decider.handle(
        at(3),
        Event::PeerLost {
            session,
            cause: "it is gone".to_owned(),
        },
    );
    decider
}

#[test]
fn a_primary_is_refused_what_another_host_holds_and_told_what_to_do() {
    for phase in [Phase::Starting, Phase::Running] {
        let mut decider = Decider::primary(settings(SettledBy::Arbiter), at(0));
        decider.handle_answer(at(1), found(3, "alpha", phase));
        let text = drain(&mut decider)
            .into_iter()
            .find_map(|action| match action {
                Action::Stop(reason) => Some(reason.to_string()),
                _ => None,
            })
            .unwrap();
        assert!(
            text.contains("alpha holds term 3") && text.contains("--role backup"),
            "{text}"
        );
    }
}

#[test]
fn a_primary_is_refused_while_its_peer_is_one() {
    let mut decider = Decider::primary(settings(SettledBy::Arbiter), at(0));
    decider.handle(at(1), Event::PeerIsPrimary { term: Term::new(2) });
    assert!(matches!(
        drain(&mut decider).as_slice(),
        [
            ..,
            Action::Stop(StopReason::TwoPrimaries { .. }),
            Action::Changed(_)
        ]
    ));
}

#[test]
fn the_operator_is_asked_for_and_heard_only_where_the_operator_decides() {
    let mut arbitrated = claiming(SettledBy::Arbiter);
    assert_eq!(
        arbitrated.handle_promote(at(4)),
        Err(PromoteRefused::NotManual)
    );
    let mut idle = Decider::backup(settings(SettledBy::Operator), at(0));
    assert!(matches!(
        idle.handle_promote(at(4)),
        Err(PromoteRefused::NothingToDecide(_))
    ));

    let mut manual = claiming(SettledBy::Operator);
    manual.handle_answer(at(4), found(4, "alpha", Phase::Running));
    manual.handle_answer(at(5), ArbiterAnswer::Swap(Err(ArbiterError::NeedsOperator)));
    let sentence = manual.status().sentence;
    assert!(
        sentence.contains("it is gone") && sentence.contains("samsaractl promote"),
        "{sentence}"
    );
    drain(&mut manual);
    manual.handle_promote(at(6)).unwrap();
    manual.handle_answer(at(7), found(4, "alpha", Phase::Running));
    let actions = drain(&mut manual);
    assert!(actions.iter().any(|action| matches!(
        action,
        Action::Ask(ArbiterRequest::Swap { permit: true, .. })
    )));
    manual.handle_answer(at(8), ArbiterAnswer::Swap(Ok(Swap::Won(Revision(10)))));
    let live = Action::GoLive { term: Term::new(5) };
    let actions = drain(&mut manual);
    assert!(
        actions.starts_with(&[Action::Gate(GateMode::Open), live]),
        "{actions:?}"
    );
}

#[test]
fn held_outputs_are_explained_by_both_troubles() {
    let mut decider = claiming(SettledBy::Arbiter);
    let error = ArbiterError::Other("directory /x is gone".to_owned());
    decider.handle_answer(at(4), ArbiterAnswer::Read(Err(error)));
    let sentence = decider.status().sentence;
    assert!(
        sentence.contains("it is gone") && sentence.contains("/x is gone"),
        "{sentence}"
    );
}

/// A primary that has told its backup that it is in sync, the first time, and lost it.
fn held() -> Decider {
    let settings = Settings {
        start: StartPolicy::Alone,
        ..settings(SettledBy::Arbiter)
    };
    let mut decider = Decider::primary(settings, at(0));
    decider.handle_answer(at(1), ArbiterAnswer::Read(Ok(None)));
    decider.handle_answer(at(2), ArbiterAnswer::Swap(Ok(Swap::Won(Revision(8)))));
    decider.handle_answer(at(3), found(1, "beta", Phase::Starting));
    decider.handle_answer(at(4), ArbiterAnswer::Swap(Ok(Swap::Won(Revision(9)))));
    let (session, term) = (SessionId(1), Term::new(1));
    decider.handle(
        at(5),
        Event::BackupJoined {
            session,
            gave_up: None,
        },
    );
    decider.handle(at(6), Event::BackupSynced { session });
    decider.handle(at(7), Event::BackupCaughtUp { session });
    let actions = drain(&mut decider);
    let guarded = actions
        .iter()
        .position(|action| *action == Action::Gate(GateMode::Guarded(session)));
    let told = Action::TellInSync {
        session,
        term,
        mark: SyncMark(1),
    };
    let told = actions.iter().position(|action| *action == told);
    assert!(guarded.is_some() && guarded < told, "{actions:?}");
    decider.handle(
        at(8),
        Event::PeerLost {
            session,
            cause: "it is gone".to_owned(),
        },
    );
    assert!(drain(&mut decider).contains(&Action::Gate(GateMode::Held)));
    decider
}

/// Whether the gate opens when a backup joins with these words.
fn opens(decider: &mut Decider, gave_up: Option<GaveUp>) -> bool {
    decider.handle(
        at(9),
        Event::BackupJoined {
            session: SessionId(2),
            gave_up,
        },
    );
    drain(decider).contains(&Action::Gate(GateMode::Open))
}

#[test]
fn only_the_backup_that_was_told_last_can_give_up_the_right() {
    let word = |term, mark| {
        Some(GaveUp {
            term: Term::new(term),
            mark: SyncMark(mark),
        })
    };
    assert!(opens(&mut held(), word(1, 1)));
    for other in [None, word(1, 0), word(1, 2), word(2, 1)] {
        assert!(!opens(&mut held(), other), "{other:?}");
    }
}

#[test]
fn a_given_up_right_waits_for_ones_own_unanswered_swap() {
    let mut decider = held();
    decider.handle_answer(at(9), found(1, "beta", Phase::Running));
    let gave_up = Some(GaveUp {
        term: Term::new(1),
        mark: SyncMark(1),
    });
    assert!(!opens(&mut decider, gave_up), "the swap is out");
    decider.handle_answer(
        at(10),
        ArbiterAnswer::Swap(Err(ArbiterError::Other("no".to_owned()))),
    );
    assert!(
        drain(&mut decider).contains(&Action::Gate(GateMode::Open)),
        "it certainly failed"
    );
}
