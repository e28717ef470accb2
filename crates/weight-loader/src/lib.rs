//! Path to checked tensors where they will be used, with progress.
