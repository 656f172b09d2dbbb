//! Windows.

compile_error!("Windows is not supported yet");
