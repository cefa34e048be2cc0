//! Vulkan with validation layers, whose messages make a test fail.

use std::ffi::c_void;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::{self, ThreadId};

use ash::{ext, vk};

use crate::error::VulkanError;
use crate::gpu::Parts;
use crate::own::{self, Made};

/// Set where Vulkan is to be tested; then it must be there.
const WANTED: &str = "TILEWORK_TEST_VULKAN";

type Messages = Arc<Mutex<Vec<String>>>;

/// Which thread has devices with validation, and how many: others wait until it has none. The layer (1.3.239) knows a
/// device by an address of the loader's, and forgets it after that address may have been given to another device: the
/// next call on that one goes nowhere.
static TURN: Mutex<Option<(ThreadId, usize)>> = Mutex::new(None);
static OVER: Condvar = Condvar::new();

/// An instance that stays until the process ends, and with it the driver: the loader unloads one when its last instance goes,
/// and after some tens of times finds NVIDIA's (580) no longer.
static STAYS: OnceLock<Option<ash::Instance>> = OnceLock::new();

/// A share of a thread's turn, which ends with the last.
struct Turn;

impl Turn {
    fn wait() -> Turn {
        let own = thread::current().id();
        let others = |turn: &mut Option<(ThreadId, usize)>| turn.is_some_and(|(thread, _)| thread != own);
        let mut turn = OVER.wait_while(TURN.lock().unwrap(), others).unwrap();
        let shares = turn.map_or(0, |(_, shares)| shares);
        *turn = Some((own, shares + 1));
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turn = TURN.lock().unwrap();
        *turn = turn.map(|(thread, shares)| (thread, shares - 1)).filter(|&(_, shares)| shares > 0);
        OVER.notify_all();
    }
}

/// An instance with validation and a device on it. When it is dropped, after all that was made of it, every message
/// that came until then is a failure: objects that were left, too.
pub struct Rig {
    pub instance: ash::Instance,
    pub made: Made,
    messenger: (ext::debug_utils::Instance, vk::DebugUtilsMessengerEXT),
    pub messages: Messages,
    /// Cleared by tests that provoke messages.
    pub strict: bool,
    pub entry: ash::Entry,
    /// Dropped last.
    _turn: Turn,
}

impl Rig {
    /// `None`, said with the reason, where Vulkan is not to be tested.
    pub fn new() -> Option<Rig> {
        if std::env::var_os(WANTED).is_none() {
            println!("skipped: {WANTED} is not set");
            return None;
        }
        let rig = Rig::try_new();
        Some(
            rig.unwrap_or_else(|error| {
                panic!("{error}; the tests need a driver and vulkan-validationlayers")
            }),
        )
    }

    fn try_new() -> Result<Rig, VulkanError> {
        let turn = Turn::wait();
        let entry = own::load()?;
        STAYS.get_or_init(|| own::make_instance(&entry, &[], &[]).ok());
        let layers = [c"VK_LAYER_KHRONOS_validation"];
        let instance = own::make_instance(&entry, &layers, &[ext::debug_utils::NAME])?;
        let messages = Messages::default();
        let debug = ext::debug_utils::Instance::new(&entry, &instance);
        let info = vk::DebugUtilsMessengerCreateInfoEXT::default()
            .message_severity(
                vk::DebugUtilsMessageSeverityFlagsEXT::WARNING | vk::DebugUtilsMessageSeverityFlagsEXT::ERROR,
            )
            .message_type(
                vk::DebugUtilsMessageTypeFlagsEXT::VALIDATION
                    | vk::DebugUtilsMessageTypeFlagsEXT::PERFORMANCE,
            )
            .pfn_user_callback(Some(collect))
            .user_data(Arc::as_ptr(&messages).cast_mut().cast());
        // SAFETY: the instance is alive and has the extension; the list outlives the messenger in the rig.
        let messenger = unsafe { debug.create_debug_utils_messenger(&info, None) }.unwrap();
        // SAFETY: the instance was made a moment ago.
        let made = unsafe { own::make_device(&instance, 0) }?;
        Ok(Rig { instance, made, messenger: (debug, messenger), messages, strict: true, entry, _turn: turn })
    }

    /// Its parts, which own it.
    pub fn into_parts(self) -> Parts {
        let (instance, made) = (self.instance.clone(), self.made.clone());
        made.into_parts(instance, Box::new(self))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and owned by whoever used it, who has destroyed the rest.
        unsafe {
            self.made.device.destroy_device(None);
            self.messenger.0.destroy_debug_utils_messenger(self.messenger.1, None);
            self.instance.destroy_instance(None);
        }
        let messages = self.messages.lock().unwrap();
        if self.strict && !std::thread::panicking() {
            assert!(messages.is_empty(), "validation has {}", messages.join("\n"));
        }
    }
}

unsafe extern "system" fn collect(
    _: vk::DebugUtilsMessageSeverityFlagsEXT,
    _: vk::DebugUtilsMessageTypeFlagsEXT,
    data: *const vk::DebugUtilsMessengerCallbackDataEXT<'_>,
    messages: *mut c_void,
) -> vk::Bool32 {
    // SAFETY: the layer passes data that is valid during the call, and what the messenger was made with, a list that
    // outlives it.
    let (data, messages) = unsafe { (&*data, &*messages.cast::<Mutex<Vec<String>>>()) };
    // SAFETY: null, or a string that ends.
    let text = unsafe { data.message_as_c_str() }.unwrap_or(c"no text").to_string_lossy().into_owned();
    if let Ok(mut messages) = messages.lock() {
        messages.push(text);
    }
    vk::FALSE
}
