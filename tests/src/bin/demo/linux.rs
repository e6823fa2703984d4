//! `--linux`: an ordinary Linux machine with a disk and a network address, whose hosts are killed in turn.

use std::thread;
use std::time::Duration;

use samsara_tests::linux::{LinuxGuest, check_disk};
use samsara_tests::seed::Seeded;
use samsara_tests::service::{Client, Service};
use samsara_tests::wire::GUEST;
use samsara_tests::{HarnessError, Wire};

use super::{EXIT_FAILED, EXIT_WRONG, Failure};

const KILLS: usize = 3;
/// For how long the client is served between a kill and what comes next: at least so many requests.
const STRETCH: Duration = Duration::from_secs(8);
const ANSWERS: u64 = 10;
const BOOT_BOUND: Duration = Duration::from_mins(4);
const END_BOUND: Duration = Duration::from_mins(1);
const SEED: u64 = 1;

/// Boots the machine, uses it, and kills the host under it, again and again.
pub(super) fn run() -> Result<(), Failure> {
    let unusable = |why: String| Failure::new(EXIT_FAILED, why);
    println!("building the Linux guest, if it is not there yet (some minutes, the first time)");
    let guest = LinuxGuest::locate().map_err(unusable)?;
    let wire = Wire::new()?;
    println!("two hosts, and a client in a network namespace of its own; booting Linux on 2 vCPUs");
    let mut service = Service::start(guest, "mixed", wire)?;
    service.wait_protected()?;
    let serving = "samsara: serving";
    service
        .pair
        .primary
        .wait_output(serving, BOOT_BOUND, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            text.contains(serving).then_some(())
        })?;
    println!(
        "the guest computes, writes its disk, and serves {GUEST}:7000; the client stores values"
    );
    let client = Client::start(&service.wire, Seeded::new(SEED))?;
    for _ in 0..KILLS {
        kill_once(&mut service, &client)?;
    }
    let seen = client.finish(&service.wire)?;
    println!(
        "\none TCP connection: {} answers, none failed; longest pause {:.0?}",
        seen.pauses.answers, seen.pauses.longest
    );
    println!(
        "{} values acknowledged, {} keys read back, each as acknowledged",
        seen.sets, seen.keys
    );
    check_end(service)
}

fn serve(client: &Client) -> Result<(), HarnessError> {
    thread::sleep(STRETCH);
    client.wait_more(ANSWERS)
}

fn kill_once(service: &mut Service, client: &Client) -> Result<(), HarnessError> {
    serve(client)?;
    let name = service.pair.primary.name().to_owned();
    let at = service.pair.kill_primary()?;
    client.wait_more(1)?;
    let away = at.elapsed();
    println!("{name} is killed: the connection is answered again after {away:.0?}");
    serve(client)?;
    let (took, bytes) = service.protect_again()?;
    println!(
        "{name} is back as backup: protected after {took:.1?}, with {} KiB of its disk sent",
        bytes / 1024
    );
    Ok(())
}

/// Both hosts end well, with equal disks.
fn check_end(mut service: Service) -> Result<(), Failure> {
    for host in [&mut service.pair.primary, &mut service.pair.backup] {
        let code = host.wait_code(END_BOUND)?;
        if code != 0 {
            let line = format!("{} exited with status {code}", host.name());
            return Err(Failure::new(EXIT_WRONG, line));
        }
    }
    let [alpha, beta] = &service.images;
    check_disk(alpha)?;
    let read = |path: &std::path::Path| std::fs::read(path).map_err(HarnessError::file(path));
    if read(alpha)? != read(beta)? {
        return Err(Failure::new(EXIT_WRONG, "the hosts' disks differ"));
    }
    println!("both hosts' disks are equal, and the file system on them is without fault");
    Ok(())
}
