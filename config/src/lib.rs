//! Typed configuration, validated at the edge.
