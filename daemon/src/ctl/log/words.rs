//! What records are called, for people and for scripts.

use samsara_commitlog::{Boundary, Exit, Input, Space};
use serde_json::{Value, json};

pub(super) fn boundary(boundary: Boundary) -> &'static str {
    match boundary {
        Boundary::Exit => "exit",
        Boundary::Timer => "timer",
        Boundary::Kick => "kick",
    }
}

fn space(space: Space) -> &'static str {
    match space {
        Space::Mmio => "mmio",
        Space::Port => "port",
        Space::Msr => "msr",
    }
}

/// The kind of an exit, in few words.
pub(super) fn exit_kind(exit: &Exit) -> String {
    match exit {
        Exit::Cut => "cut".to_owned(),
        Exit::Halt => "halt".to_owned(),
        Exit::Window => "window".to_owned(),
        Exit::Write { space: of, .. } => format!("{} write", space(*of)),
        Exit::Read { space: of, .. } => format!("{} read", space(*of)),
        Exit::Exception { .. } => "exception".to_owned(),
        Exit::Fatal { .. } => "fatal".to_owned(),
    }
}

/// An exit for people.
pub(super) fn exit_text(exit: &Exit) -> String {
    let kind = exit_kind(exit);
    match exit {
        Exit::Cut | Exit::Halt | Exit::Window => kind,
        Exit::Write {
            address,
            size,
            value,
            ..
        } => format!("{kind} {address:#x} = {value:#x} ({size} B)"),
        Exit::Read {
            address,
            size,
            input,
            ..
        } => {
            let outside = input.map_or(String::new(), |input| format!(", from outside {input:#x}"));
            format!("{kind} {address:#x} ({size} B){outside}")
        }
        Exit::Exception {
            vector,
            error_code,
            rip,
            cr2,
        } => format!("{kind} {vector}, error code {error_code:#x}, rip {rip:#x}, cr2 {cr2:#x}"),
        Exit::Fatal { rip, reason } => format!("{kind} at rip {rip:#x}: {reason}"),
    }
}

/// An exit for scripts. Numbers that may not fit a script's are text.
pub(super) fn exit_json(exit: &Exit) -> Value {
    let hex = |number: u64| format!("{number:#x}");
    match exit {
        Exit::Cut => json!({ "kind": "cut" }),
        Exit::Halt => json!({ "kind": "halt" }),
        Exit::Window => json!({ "kind": "window" }),
        Exit::Write {
            space: of,
            address,
            size,
            value,
        } => json!({
            "kind": "write", "space": space(*of), "address": hex(*address), "size": size,
            "value": hex(*value),
        }),
        Exit::Read {
            space: of,
            address,
            size,
            input,
        } => json!({
            "kind": "read", "space": space(*of), "address": hex(*address), "size": size,
            "from_outside": input.map(hex),
        }),
        Exit::Exception {
            vector,
            error_code,
            rip,
            cr2,
        } => json!({
            "kind": "exception", "vector": vector, "error_code": hex(*error_code),
            "rip": hex(*rip), "cr2": hex(*cr2),
        }),
        Exit::Fatal { rip, reason } => {
            json!({ "kind": "fatal", "rip": hex(*rip), "reason": reason })
        }
    }
}

/// The kind of an input.
pub(super) fn input_kind(input: &Input) -> &'static str {
    match input {
        Input::Console(_) => "console",
        Input::File { .. } => "file",
        Input::OutputStep { .. } => "output_step",
        Input::Clock => "clock",
        Input::Device { .. } => "device",
    }
}

/// An input for people.
pub(super) fn input_text(input: &Input) -> String {
    match input {
        Input::Console(bytes) => format!("console: {} B typed", bytes.len()),
        Input::File { vcpu, bytes } => {
            format!("input file: {} B for vCPU {vcpu}", bytes.len())
        }
        Input::OutputStep { vcpu } => format!("next step of the OUTPUT of vCPU {vcpu}"),
        Input::Clock => "clock".to_owned(),
        Input::Device { device, bytes } if bytes.is_empty() => {
            format!("device {device}: next step")
        }
        Input::Device { device, bytes } => format!("device {device}: {} B", bytes.len()),
    }
}

/// An input for scripts.
pub(super) fn input_json(input: &Input) -> Value {
    let kind = input_kind(input);
    match input {
        Input::Console(bytes) => json!({ "kind": kind, "bytes": bytes.len() }),
        Input::File { vcpu, bytes } => {
            json!({ "kind": kind, "vcpu": vcpu.0, "bytes": bytes.len() })
        }
        Input::OutputStep { vcpu } => json!({ "kind": kind, "vcpu": vcpu.0 }),
        Input::Clock => json!({ "kind": kind }),
        Input::Device { device, bytes } => {
            json!({ "kind": kind, "device": device.0, "bytes": bytes.len() })
        }
    }
}
