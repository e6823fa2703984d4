//! What the guest's network devices send and get.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::{advance, register};
use crate::net::{DeviceCounts, Direction, Lost};

/// Frames and bytes, by device and direction; frames lost, by reason.
pub struct NetworkMetrics {
    frames: IntCounterVec,
    bytes: IntCounterVec,
    lost: IntCounterVec,
    announcements: IntCounterVec,
    read_errors: IntCounterVec,
    unwired: IntCounter,
}

impl NetworkMetrics {
    /// Registers the group.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counters = |name, help, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let passed = ["device", "direction"];
        Ok(Self {
            frames: counters(
                "samsara_net_frames_total",
                "Frames that the guest took (in), and that the network took from it (out).",
                &passed,
            )?,
            bytes: counters("samsara_net_bytes_total", "Bytes of these frames.", &passed)?,
            lost: counters(
                "samsara_net_frames_lost_total",
                "Frames that got no further: standby, no_room, gone (in); full, down, refused (out).",
                &["device", "direction", "reason"],
            )?,
            announcements: counters(
                "samsara_net_announcements_total",
                "Frames that told the network that the guest is on this host now.",
                &["device"],
            )?,
            read_errors: counters(
                "samsara_net_read_errors_total",
                "Times that the device's tap could not be read.",
                &["device"],
            )?,
            unwired: register(
                registry,
                IntCounter::new(
                    "samsara_net_unwired_frames_total",
                    "Frames of devices that have no tap on this host.",
                )?,
            )?,
        })
    }

    /// Moves the group.
    pub fn update(&self, devices: &[DeviceCounts], unwired_frames: u64) {
        for counts in devices {
            let device = counts.device.to_string();
            let ways = [
                (Direction::In, counts.frames_in, counts.bytes_in),
                (Direction::Out, counts.frames_out, counts.bytes_out),
            ];
            for (direction, frames, bytes) in ways {
                let labels = [&device, direction.as_str()];
                advance(&self.frames.with_label_values(&labels), frames);
                advance(&self.bytes.with_label_values(&labels), bytes);
            }
            for reason in Lost::ALL {
                let labels = [&device, reason.direction().as_str(), reason.as_str()];
                advance(
                    &self.lost.with_label_values(&labels),
                    counts.lost_for(reason),
                );
            }
            let labels = [&device];
            let announcements = self.announcements.with_label_values(&labels);
            advance(&announcements, counts.announcements);
            let read_errors = self.read_errors.with_label_values(&labels);
            advance(&read_errors, counts.read_errors);
        }
        advance(&self.unwired, unwired_frames);
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;
    use samsara_commitlog::DeviceIndex;

    use super::*;

    #[test]
    fn every_one_is_moved() {
        let registry = Registry::new();
        let metrics = NetworkMetrics::new(&registry).unwrap();
        let counts = DeviceCounts {
            device: DeviceIndex(2),
            frames_in: 11,
            bytes_in: 12,
            frames_out: 13,
            bytes_out: 14,
            announcements: 15,
            read_errors: 16,
            lost: [20, 21, 22, 23, 24, 25],
        };
        metrics.update(&[counts], 30);
        let text = TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        let values: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let wanted = [
            "samsara_net_announcements_total{device=\"2\"} 15",
            "samsara_net_bytes_total{device=\"2\",direction=\"in\"} 12",
            "samsara_net_bytes_total{device=\"2\",direction=\"out\"} 14",
            "samsara_net_frames_lost_total{device=\"2\",direction=\"in\",reason=\"gone\"} 22",
            "samsara_net_frames_lost_total{device=\"2\",direction=\"in\",reason=\"no_room\"} 21",
            "samsara_net_frames_lost_total{device=\"2\",direction=\"in\",reason=\"standby\"} 20",
            "samsara_net_frames_lost_total{device=\"2\",direction=\"out\",reason=\"down\"} 24",
            "samsara_net_frames_lost_total{device=\"2\",direction=\"out\",reason=\"full\"} 23",
            "samsara_net_frames_lost_total{device=\"2\",direction=\"out\",reason=\"refused\"} 25",
            "samsara_net_frames_total{device=\"2\",direction=\"in\"} 11",
            "samsara_net_frames_total{device=\"2\",direction=\"out\"} 13",
            "samsara_net_read_errors_total{device=\"2\"} 16",
            "samsara_net_unwired_frames_total 30",
        ];
        assert_eq!(values, wanted);
    }
}
