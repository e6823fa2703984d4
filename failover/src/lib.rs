//! Roles, terms, failure detection, arbiters.
