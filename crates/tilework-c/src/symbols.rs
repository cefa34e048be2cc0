//! Libraries that are loaded already, and what they export.

use std::ffi::{CStr, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

/// A library of this process. Never closed: what was found in it is kept.
pub struct Library(NonNull<c_void>);

impl Library {
    /// The library of this name, if the process has it loaded.
    pub fn loaded(name: &CStr) -> Option<Library> {
        Library::with(name, libc::RTLD_NOLOAD)
    }

    /// The library of this name, loaded if it is not.
    ///
    /// For libraries of the system only: loading runs code.
    pub fn open(name: &CStr) -> Option<Library> {
        Library::with(name, 0)
    }

    /// Keeps the library that an address lies in loaded until the process ends, whoever closes it.
    pub fn keep(address: *const c_void) -> bool {
        let mut info = MaybeUninit::<libc::Dl_info>::uninit();
        // SAFETY: the place is valid for what is written; any address may be asked about.
        if unsafe { libc::dladdr(address, info.as_mut_ptr()) } == 0 {
            return false;
        }
        // SAFETY: filled, since something was found.
        let name = unsafe { info.assume_init() }.dli_fname;
        // SAFETY: the name of a library that is loaded, as the loader keeps it: terminated.
        Library::loaded(unsafe { CStr::from_ptr(name) }).is_some()
    }

    /// What the whole program sees: its executable, what that is linked to, and what was preloaded.
    pub fn program() -> Option<Library> {
        // SAFETY: no name is the program itself, and nothing is loaded.
        NonNull::new(unsafe { libc::dlopen(ptr::null(), libc::RTLD_LAZY) }).map(Library)
    }

    fn with(name: &CStr, flags: i32) -> Option<Library> {
        // SAFETY: the name is terminated; libraries that are asked for are loaded already or the system's.
        NonNull::new(unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | flags) }).map(Library)
    }

    /// The address of a symbol.
    pub fn find(&self, name: &CStr) -> Option<NonNull<c_void>> {
        // SAFETY: the handle is one that dlopen returned and nobody closed; the name is terminated.
        NonNull::new(unsafe { libc::dlsym(self.0.as_ptr(), name.as_ptr()) })
    }

    /// The length of what begins at a symbol's address, bytes, as the library says.
    pub fn size_of(&self, address: NonNull<c_void>) -> Option<usize> {
        #[link(name = "c")]
        unsafe extern "C" {
            /// As dladdr, and more; of glibc and its like.
            fn dladdr1(
                address: *const c_void,
                info: *mut libc::Dl_info,
                extra: *mut *mut c_void,
                flags: c_int,
            ) -> c_int;
        }
        /// `RTLD_DL_SYMENT`: the extra is the symbol in the library's table.
        const SYMBOL: c_int = 1;

        let (mut info, mut extra) = (MaybeUninit::uninit(), ptr::null_mut());
        // SAFETY: both places are valid for what is written.
        let found = unsafe { dladdr1(address.as_ptr(), info.as_mut_ptr(), &mut extra, SYMBOL) };
        // SAFETY: null where no symbol was found, else one of a library that stays loaded.
        let symbol = unsafe { extra.cast::<libc::Elf64_Sym>().as_ref() }.filter(|_| found != 0)?;
        // SAFETY: filled, since something was found.
        let begins = unsafe { info.assume_init() }.dli_saddr;
        ptr::eq(begins, address.as_ptr()).then_some(symbol.st_size as usize)
    }
}
