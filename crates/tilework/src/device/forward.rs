//! Passing calls on to the device that a wrapper goes around.

/// Writes the methods of [`Device`](crate::device::Device) that a wrapper leaves to the device inside.
///
/// Stands in the `impl`, which writes the others itself: `forward!(|this| this.inner => name, caps, calls)`. The
/// trait has no default methods, so that a wrapper that forgets one does not compile.
macro_rules! forward {
    (|$this:ident| $inner:expr => $($method:ident),* $(,)?) => {
        $(forward!(@ $method, $this, $inner);)*
    };
    (@ name, $this:ident, $inner:expr) => {
        fn name(&self) -> &'static str { let $this = self; $inner.name() }
    };
    (@ caps, $this:ident, $inner:expr) => {
        fn caps(&self) -> &$crate::device::Caps { let $this = self; $inner.caps() }
    };
    (@ reserve, $this:ident, $inner:expr) => {
        forward!(@@ reserve(bytes: u64) -> $crate::device::Range, $this, $inner);
    };
    (@ unreserve, $this:ident, $inner:expr) => {
        forward!(@@ unreserve(range: $crate::device::RangeId) -> (), $this, $inner);
    };
    (@ create, $this:ident, $inner:expr) => {
        forward!(@@ create(bytes: u64) -> $crate::device::HeapId, $this, $inner);
    };
    (@ create_on_host, $this:ident, $inner:expr) => {
        forward!(@@ create_on_host(bytes: u64) -> $crate::device::HeapId, $this, $inner);
    };
    (@ release, $this:ident, $inner:expr) => {
        forward!(@@ release(heap: $crate::device::HeapId) -> (), $this, $inner);
    };
    (@ map, $this:ident, $inner:expr) => {
        forward!(
            @@ map(range: $crate::device::RangeId, binds: &[$crate::device::Bind]) -> (), $this, $inner
        );
    };
    (@ set_access, $this:ident, $inner:expr) => {
        forward!(
            @@ set_access(range: $crate::device::RangeId, offset: u64, bytes: u64) -> (), $this, $inner
        );
    };
    (@ unmap, $this:ident, $inner:expr) => {
        forward!(
            @@ unmap(range: $crate::device::RangeId, offset: u64, bytes: u64) -> (), $this, $inner
        );
    };
    (@ add_peer, $this:ident, $inner:expr) => {
        forward!(@@ add_peer(peer: u32) -> (), $this, $inner);
    };
    (@ calls, $this:ident, $inner:expr) => {
        fn calls(&self) -> $crate::device::Calls { let $this = self; $inner.calls() }
    };
    (@ held_bytes, $this:ident, $inner:expr) => {
        fn held_bytes(&self) -> Result<u64, $crate::device::DeviceError> { let $this = self; $inner.held_bytes() }
    };
    (@ free_bytes, $this:ident, $inner:expr) => {
        fn free_bytes(&self) -> Option<u64> { let $this = self; $inner.free_bytes() }
    };
    (@ ready, $this:ident, $inner:expr) => {
        fn ready(&self, most: u64) -> Option<u64> { let $this = self; $inner.ready(most) }
    };
    (@ read, $this:ident, $inner:expr) => {
        fn read(&self, address: u64, out: &mut [u8]) -> Result<(), $crate::device::DeviceError> {
            let $this = self;
            $inner.read(address, out)
        }
    };
    (@ write, $this:ident, $inner:expr) => {
        fn write(&self, address: u64, bytes: &[u8]) -> Result<(), $crate::device::DeviceError> {
            let $this = self;
            $inner.write(address, bytes)
        }
    };
    (@@ $method:ident($($name:ident: $of:ty),*) -> $made:ty, $this:ident, $inner:expr) => {
        fn $method(&mut self, $($name: $of),*) -> Result<$made, $crate::device::DeviceError> {
            let $this = self;
            $inner.$method($($name),*)
        }
    };
}

pub(crate) use forward;
