//! `samsaractl contention`: what vCPUs lose their chunks by.

use std::fmt::Write as _;

use clap::Args;
use samsara_config::{RecordingMode, Role};

use super::render::{one_line, percent};
use super::{CtlError, Socket};
use crate::contention::{Conflict, Contention, Place, Winner};
use crate::control::{self, CLIENT_TIMEOUT, Request, Response};

/// What is asked for.
#[derive(Debug, Args)]
pub(super) struct ContentionArgs {
    #[command(flatten)]
    socket: Socket,
    /// Print JSON, for scripts: all that is known.
    #[arg(long)]
    json: bool,
    /// How many of the worst to print.
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    top: usize,
}

impl ContentionArgs {
    pub(super) fn run(self) -> Result<String, CtlError> {
        let socket = self.socket.path()?;
        match control::request(&socket, Request::Contention, CLIENT_TIMEOUT)? {
            Response::Contention(found) if self.json => {
                Ok(serde_json::to_string_pretty(&found)? + "\n")
            }
            Response::Contention(found) => Ok(render(&found, self.top)),
            Response::Refused(why) => Err(CtlError::Refused(why)),
            _ => Err(CtlError::Unexpected),
        }
    }
}

/// The worst `top` conflicts, for people.
pub(super) fn render(found: &Contention, top: usize) -> String {
    let mut text = summary(found);
    if found.conflicts.is_empty() {
        return text;
    }
    text += "\nsquashes   lost ms  loser    winner   page\n";
    for conflict in found.conflicts.iter().take(top) {
        text += &row(conflict);
    }
    let hidden = found.conflicts.len().saturating_sub(top);
    if hidden > 0 {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{hidden} more: see --top, --json");
    }
    text
}

fn summary(found: &Contention) -> String {
    let (vm, host) = (one_line(&found.vm), one_line(&found.host));
    if found.recording == RecordingMode::Off {
        return format!("{vm} on {host} is not recorded: its vCPUs cannot conflict\n");
    }
    if found.isolation == "serial" {
        return format!(
            "{vm} on {host} runs in serial isolation: one vCPU at a time, so nothing conflicts\n"
        );
    }
    let all = found.chunks + found.squashes;
    if found.role == Role::Backup && all == 0 {
        return format!("{vm} does not run on {host}, which is its backup: ask its primary\n");
    }
    let mut text = format!(
        "{vm} on {host}: {} of {all} chunks squashed ({}), {:.3} s of vCPU time lost\n",
        found.squashes,
        percent(found.squashes, all),
        found.lost_seconds
    );
    if found.too_large > 0 {
        let _ = writeln!(
            text,
            "{} of them wrote more than a record carries, and conflicted with nothing",
            found.too_large
        );
    }
    if !found.conflicts.is_empty() {
        let _ = writeln!(text, "names: {}", one_line(&found.names));
    }
    text
}

fn row(conflict: &Conflict) -> String {
    let over = match conflict.squashes_over {
        0 => String::new(),
        over => format!(" (or {over} fewer)"),
    };
    let mut line = format!(
        "{:>8}  {:>8.1}  vCPU {:<2}  {:<7}  {}{}{over}\n",
        conflict.squashes,
        conflict.lost_seconds * 1e3,
        conflict.loser,
        winner(conflict.winner),
        conflict.page,
        objects(conflict),
    );
    for (who, places) in [
        ("loser at", &conflict.loser_at),
        ("winner at", &conflict.winner_at),
    ] {
        if !places.is_empty() {
            let _ = writeln!(line, "{:>20}{who:<10} {}", "", self::places(places));
        }
    }
    line
}

fn winner(winner: Winner) -> String {
    match winner {
        Winner::Vcpu(index) => format!("vCPU {index}"),
        Winner::Input => "input".to_owned(),
        Winner::Several => "several".to_owned(),
    }
}

fn objects(conflict: &Conflict) -> String {
    let names = conflict.objects.join(", ");
    match (names.is_empty(), conflict.more_objects) {
        (true, _) => String::new(),
        (false, 0) => format!("  {}", one_line(&names)),
        (false, more) => format!("  {} and {more} more", one_line(&names)),
    }
}

/// Places with their shares of all that are known.
fn places(places: &[Place]) -> String {
    let all = places.iter().map(|place| place.count).sum();
    let place = |place: &Place| {
        let name = place.function.as_ref().unwrap_or(&place.rip);
        format!("{} {}", one_line(name), percent(place.count, all))
    };
    places.iter().map(place).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(rip: &str, function: Option<&str>, count: u64) -> Place {
        Place {
            rip: rip.to_owned(),
            function: function.map(str::to_owned),
            count,
            count_over: 0,
        }
    }

    fn conflict() -> Conflict {
        Conflict {
            page: "0x204000".to_owned(),
            objects: vec!["shared".to_owned()],
            more_objects: 0,
            loser: 1,
            winner: Winner::Vcpu(0),
            squashes: 40,
            squashes_over: 0,
            lost_seconds: 0.0123,
            loser_at: vec![
                place("0x201650", Some("spin_lock+0x10"), 30),
                place("0x7", None, 10),
            ],
            winner_at: vec![place("0x2016b8", Some("spin_unlock"), 40)],
        }
    }

    fn found() -> Contention {
        Contention {
            vm: "vm".to_owned(),
            host: "alpha".to_owned(),
            role: Role::Primary,
            recording: RecordingMode::On,
            isolation: "parallel".to_owned(),
            chunks: 150,
            squashes: 50,
            too_large: 0,
            lost_seconds: 0.25,
            names: "/guests/counter.elf".to_owned(),
            conflicts: vec![
                conflict(),
                Conflict {
                    objects: Vec::new(),
                    winner: Winner::Input,
                    squashes_over: 3,
                    loser_at: Vec::new(),
                    winner_at: Vec::new(),
                    ..conflict()
                },
                Conflict {
                    more_objects: 7,
                    ..conflict()
                },
            ],
        }
    }

    #[test]
    fn conflicts_read_well() {
        let wanted = "\
vm on alpha: 50 of 200 chunks squashed (25.0%), 0.250 s of vCPU time lost
names: /guests/counter.elf

squashes   lost ms  loser    winner   page
      40      12.3  vCPU 1   vCPU 0   0x204000  shared
                    loser at   spin_lock+0x10 75.0%, 0x7 25.0%
                    winner at  spin_unlock 100.0%
      40      12.3  vCPU 1   input    0x204000 (or 3 fewer)
1 more: see --top, --json
";
        assert_eq!(render(&found(), 2), wanted);
        assert!(render(&found(), 9).contains("shared and 7 more"));
    }

    #[test]
    fn where_nothing_conflicts_that_is_said() {
        let quiet = Contention {
            conflicts: Vec::new(),
            squashes: 0,
            ..found()
        };
        assert_eq!(render(&quiet, 10).lines().count(), 1);
        let serial = Contention {
            isolation: "serial".to_owned(),
            ..quiet.clone()
        };
        assert!(render(&serial, 10).contains("serial isolation: one vCPU at a time"));
        let backup = Contention {
            role: Role::Backup,
            chunks: 0,
            ..quiet.clone()
        };
        assert!(render(&backup, 10).contains("ask its primary"));
        let native = Contention {
            recording: RecordingMode::Off,
            ..quiet
        };
        assert!(render(&native, 10).contains("is not recorded"));
    }

    /// Names come from a file that anybody may have made.
    #[test]
    fn nothing_moves_the_cursor() {
        let mut hostile = found();
        hostile.conflicts[0].objects = vec!["a\u{1b}[2J".to_owned()];
        hostile.conflicts[0].loser_at[0].function = Some("b\nc".to_owned());
        hostile.names = "\u{1b}]0;x".to_owned();
        let text = render(&hostile, 10);
        assert!(!text.contains('\u{1b}') && !text.contains("b\nc"), "{text}");
    }

    #[test]
    fn programs_read_it_back() {
        let json = serde_json::to_string(&found()).unwrap();
        assert!(json.contains(r#""winner":{"vcpu":0}"#) && json.contains(r#""winner":"input""#));
        assert_eq!(serde_json::from_str::<Contention>(&json).unwrap(), found());
    }
}
