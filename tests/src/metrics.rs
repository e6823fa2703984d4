//! A daemon's metrics, as Prometheus would see them.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Many times what a daemon answers.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// One look at a daemon's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    text: String,
}

impl Metrics {
    /// Asks the daemon at this address.
    pub fn scrape(address: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text)?;
        Ok(Self { text })
    }

    /// The quantile of a histogram without labels of its own, interpolated within its bucket as Prometheus does; none
    /// if nothing was measured.
    pub fn quantile(&self, name: &str, quantile: f64) -> Option<f64> {
        let buckets = self.buckets(name);
        let total = buckets.last()?.1;
        let wanted = quantile * total;
        let index = buckets.iter().position(|(_, count)| *count >= wanted)?;
        let (upper, count) = buckets[index];
        let (lower, below) = index
            .checked_sub(1)
            .map_or((0.0, 0.0), |index| buckets[index]);
        if total == 0.0 {
            return None;
        }
        if upper.is_infinite() {
            return Some(lower);
        }
        let part = if count > below {
            (wanted - below) / (count - below)
        } else {
            1.0
        };
        Some(lower + (upper - lower) * part)
    }

    /// Upper bounds and cumulative counts.
    fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let prefix = format!("{name}_bucket{{");
        let bucket = |line: &str| {
            let (labels, count) = line.strip_prefix(&prefix)?.rsplit_once("} ")?;
            let (_, bound) = labels.split_once("le=\"")?;
            let bound = bound.split('"').next()?;
            Some((bound.parse().ok()?, count.trim().parse().ok()?))
        };
        self.text.lines().filter_map(bucket).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated_within_their_bucket() {
        let metrics = |counts: [u32; 3]| {
            let [a, b, all] = counts;
            let text = format!(
                "# TYPE hold histogram\nhold_bucket{{vm=\"v\",le=\"1\"}} {a}\n\
                 hold_bucket{{vm=\"v\",le=\"2\"}} {b}\nhold_bucket{{vm=\"v\",le=\"+Inf\"}} {all}\n\
                 hold_sum 3\nother_bucket{{le=\"1\"}} 9\n"
            );
            Metrics { text }
        };
        let is = |found: Option<f64>, wanted: f64| {
            let found = found.unwrap();
            assert!((found - wanted).abs() < 1e-9, "{found}, not {wanted}");
        };
        is(metrics([0, 10, 10]).quantile("hold", 0.5), 1.5);
        is(metrics([4, 8, 8]).quantile("hold", 0.25), 0.5);
        is(metrics([0, 0, 8]).quantile("hold", 0.99), 2.0);
        assert_eq!(metrics([0, 0, 0]).quantile("hold", 0.5), None);
        assert_eq!(metrics([0, 0, 0]).quantile("none", 0.5), None);
    }
}
