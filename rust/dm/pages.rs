// SPDX-License-Identifier: GPL-2.0

//! Pages for I/O, from a reserve that lets at least one transfer proceed when memory is short.
//!
//! C header: [`include/linux/dm-io.h`](srctree/include/linux/dm-io.h), `struct page_list`

use crate::{
    bindings,
    logic::{
        count,
        units::Sectors, //
    },
    sys::irq_lock::{
        new_irq_lock,
        IrqLock, //
    }, //
};
use kernel::{
    alloc::flags::__GFP_NOWARN,
    page::{
        Page,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::Arc, //
};

/// A page, with a link in the form that dm-io reads.
struct PageNode {
    /// Its `next` points to the `link` of `rest`.
    link: bindings::page_list,
    _page: Page,
    rest: Option<KBox<PageNode>>,
}

impl PageNode {
    fn new(flags: kernel::alloc::Flags) -> Result<KBox<Self>> {
        let page = Page::alloc_page(flags)?;
        let link = bindings::page_list {
            next: core::ptr::null_mut(),
            page: page.as_ptr().cast(),
        };
        let node = PageNode {
            link,
            _page: page,
            rest: None,
        };
        Ok(KBox::new(node, flags)?)
    }
}

// SAFETY: A node owns its page and the nodes after it, and has pointers to these only.
unsafe impl Send for PageNode {}

/// A list of pages. It is a stack.
#[derive(Default)]
struct PageStack {
    top: Option<KBox<PageNode>>,
    count: u64,
}

impl PageStack {
    fn push(&mut self, mut node: KBox<PageNode>) {
        node.rest = self.top.take();
        node.link.next = match &mut node.rest {
            Some(rest) => &mut rest.link,
            None => core::ptr::null_mut(),
        };
        self.top = Some(node);
        self.count = self.count.saturating_add(1);
    }

    fn pop(&mut self) -> Option<KBox<PageNode>> {
        let mut node = self.top.take()?;
        self.top = node.rest.take();
        node.link.next = core::ptr::null_mut();
        self.count = count::subtract(self.count, 1);
        Some(node)
    }
}

impl Drop for PageStack {
    fn drop(&mut self) {
        // One by one: a node that drops the next one would recurse.
        while self.pop().is_some() {}
    }
}

/// The reserve that was not taken, and the number of pages that were taken.
struct FreePages {
    reserve: PageStack,
    taken: u64,
}

/// A pool of pages, with a reserve.
#[pin_data]
pub(crate) struct PagePool {
    /// Number of pages in the full reserve.
    size: u64,
    /// Number of pages that may be taken at a time, at most.
    most: u64,
    #[pin]
    free: IrqLock<FreePages>,
}

impl PagePool {
    /// Creates a pool with pages for `reserve` sectors, and for up to `most` if there is memory.
    /// May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EOVERFLOW` for more sectors than memory can have.
    pub(crate) fn new(reserve: Sectors, most: Sectors) -> Result<Arc<Self>> {
        let size = Self::pages(reserve)?;
        let most = Self::pages(most)?.max(size);
        let mut reserve = PageStack::default();
        for _ in 0..size {
            reserve.push(PageNode::new(GFP_KERNEL)?);
        }
        Arc::pin_init(
            pin_init!(PagePool {
                size,
                most,
                free <- new_irq_lock!(FreePages { reserve, taken: 0 }, "dm_rust_pages"),
            }),
            GFP_KERNEL,
        )
    }

    fn pages(sectors: Sectors) -> Result<u64> {
        let bytes = sectors
            .get()
            .checked_mul(1 << kernel::block::SECTOR_SHIFT)
            .ok_or(EOVERFLOW)?;
        // CAST: usize has at most 64 bits.
        Ok(bytes.div_ceil(PAGE_SIZE as u64))
    }

    /// Takes pages for some sectors, without waiting.
    ///
    /// Returns `None` if there is no memory for all of them, or if too many pages were taken. When
    /// no page is taken, this succeeds for up to as many sectors as the reserve is for. Any
    /// context.
    pub(crate) fn take(self: &Arc<Self>, sectors: Sectors) -> Option<Pages> {
        let wanted = Self::pages(sectors).ok()?;
        let mut stack = PageStack::default();
        {
            let mut free = self.free.lock();
            let taken = free.taken.checked_add(wanted)?;
            if taken > self.most {
                return None;
            }
            free.taken = taken;
            while stack.count < wanted {
                let Some(node) = free.reserve.pop() else {
                    break;
                };
                stack.push(node);
            }
        }
        let mut pages = Pages {
            stack,
            wanted,
            sectors,
            pool: self.clone(),
        };
        while pages.stack.count < wanted {
            pages
                .stack
                .push(PageNode::new(GFP_NOWAIT | __GFP_NOWARN).ok()?);
        }
        Some(pages)
    }
}

/// Pages for some sectors. They return to their pool when dropped, in any context.
pub(crate) struct Pages {
    stack: PageStack,
    /// Number of pages, once all are taken.
    wanted: u64,
    sectors: Sectors,
    pool: Arc<PagePool>,
}

impl Pages {
    /// Returns the number of sectors that the pages were taken for. Any context.
    pub(crate) fn sectors(&self) -> Sectors {
        self.sectors
    }

    /// Returns the list as dm-io reads it, which is valid until `self` is dropped or changed. Any
    /// context.
    pub(super) fn raw(&mut self) -> *mut bindings::page_list {
        match &mut self.stack.top {
            Some(node) => &mut node.link,
            None => core::ptr::null_mut(),
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let mut free = self.pool.free.lock();
        free.taken = count::subtract(free.taken, self.wanted);
        while free.reserve.count < self.pool.size {
            let Some(node) = self.stack.pop() else { return };
            free.reserve.push(node);
        }
        // Pages beyond the reserve are freed with `stack`, after the lock is released.
    }
}
