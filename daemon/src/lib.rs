//! samsarad and samsaractl.
