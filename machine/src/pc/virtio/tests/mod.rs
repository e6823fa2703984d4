//! A made-up driver against each device, and drivers that do everything wrong.

mod block;
mod console;
mod driver;
mod entropy;
mod hostile;
mod malformed;
mod net;
mod transport;
