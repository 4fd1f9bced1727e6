//! How each broker puts its questions, and wants them answered.

pub(crate) mod emqx;
pub(crate) mod rabbitmq;
