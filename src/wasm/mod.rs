//! What an administrator and a container's annotations say of Wasm containers: the configuration file ([`settings`]), and
//! how the two together become the [`proa_executor::policy::Policy`] of one container ([`annotations`]).

pub mod annotations;
pub mod settings;
mod units;

pub use settings::Settings;
