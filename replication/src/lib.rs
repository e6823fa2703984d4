//! Replication of the commit log over QUIC.
