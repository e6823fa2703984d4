//! samsarad and samsaractl.

pub mod control;
pub mod ctl;
pub mod exit;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod notify;
pub mod pki;
pub mod report;
pub mod status;
