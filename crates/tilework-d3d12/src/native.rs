//! What there is on Windows: everything that calls Direct3D.

mod adapters;
mod device;
mod gpu;
mod order;
mod staging;
mod state;
mod view;
mod zeros;

pub use self::adapters::list;
pub use self::device::D3d12;
pub use self::gpu::{Live, Parts};
pub use self::view::{Held, Slice, View, aliasing_barrier};

use crate::error::{D3d12Error, Hresult};

/// Names the function whose answer this is.
fn answer<T>(function: &'static str, result: windows::core::Result<T>) -> Result<T, D3d12Error> {
    result.map_err(|error| D3d12Error::Refused { function, code: Hresult(error.code().0) })
}

/// What a function has made whose answer this is.
fn made<T>(
    function: &'static str,
    result: windows::core::Result<()>,
    object: Option<T>,
) -> Result<T, D3d12Error> {
    answer(function, result)?;
    // Success without an object is a defect of the driver's.
    object.ok_or(D3d12Error::Refused { function, code: Hresult(0) })
}
