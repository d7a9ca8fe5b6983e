//! The filter grammar of List, Walk and Subscribe (containerd-behaviour 0.11). Under construction.
