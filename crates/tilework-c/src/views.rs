//! Managers on a program's own device: what they keep to find blocks and to order work, by their handles.

use std::sync::{Arc, Mutex, PoisonError};

use rustc_hash::FxHashMap;
use tilework::device::Device;
use tilework::shared::streams::InOrder;

use crate::call::{self, Failure, Result, TileworkStatus, status};
use crate::manager::{TileworkManager, TileworkOptions, put, settings};
use crate::{handles, open};

/// The views of the devices of one kind.
pub struct Views<V> {
    /// What the options call a device of this kind.
    device: &'static str,
    /// By their managers' handles.
    views: Mutex<Option<FxHashMap<usize, V>>>,
}

/// Why an address is not found.
#[cold]
pub fn nowhere(address: u64) -> Failure {
    Failure::new(TileworkStatus::UnknownAddress, format!("{address:#x} is no address of the manager's"))
}

impl<V: Clone> Views<V> {
    /// None yet.
    pub const fn new(device: &'static str) -> Views<V> {
        Views { device, views: Mutex::new(None) }
    }

    fn lock<T>(&self, body: impl FnOnce(&mut FxHashMap<usize, V>) -> T) -> T {
        // Each change is one call of the map's.
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        body(views.get_or_insert_default())
    }

    /// Makes a manager on the device that `open` takes from its caller, and stores its handle.
    ///
    /// # Safety
    /// `options` and `out` as `tilework_create` has them.
    pub unsafe fn create<D: Device + 'static>(
        &self,
        options: *const TileworkOptions,
        out: *mut *mut TileworkManager,
        open: impl FnOnce() -> Result<(D, V)>,
    ) -> TileworkStatus {
        status(|| {
            if out.is_null() {
                return Err(Failure::argument("the place for the manager is null"));
            }
            // SAFETY: as this function demands.
            let settings = unsafe { settings(options)? };
            if settings.device.as_deref().is_some_and(|device| device != self.device) {
                let text = format!("the options' device must be null or {:?} here", self.device);
                return Err(Failure::argument(text));
            }
            open::check(&settings)?;
            call::watch_forks();
            let (device, view) = open()?;
            // One queue, in whose order the device maps and unmaps.
            let shared = open::over(Box::new(device), Box::new(InOrder), &settings)?;
            shared.set_limit(settings.limit)?;
            let handle = handles::register(Arc::new(shared));
            self.lock(|views| views.insert(handle, view));
            // SAFETY: as this function demands.
            unsafe { put(out, std::ptr::without_provenance_mut(handle)) }
        })
    }

    /// Does something with the view of a manager's device.
    pub fn with(&self, manager: *mut TileworkManager, body: impl FnOnce(&V) -> Result<()>) -> TileworkStatus {
        status(|| {
            handles::with(manager.addr(), |_| {
                let view = self.lock(|views| views.get(&manager.addr()).cloned());
                let view = view.ok_or_else(|| {
                    Failure::argument(format!("the manager's device is not {}", self.device))
                })?;
                body(&view)
            })
        })
    }

    /// Lets go of what belongs to a manager that is no more.
    pub fn forget(&self, handle: usize) {
        // Dropped once the lock is not held: the last view may free much.
        let _view = self.lock(|views| views.remove(&handle));
    }
}
