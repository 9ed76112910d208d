// Virtual scrolling: of any number of items only the tiles in view are in the page.

import { el } from '../shared/elements.js'
import { layoutOf, movedBy, placeOf, scrolledTo, visibleRange } from './items.js'

/**
 * `makeTile(item)` gives {element, isBusy(), leave(), activate(key)}. A tile that is busy (its caption is being
 * edited) or has the focus stays in the page wherever it lies.
 */
export function sheetGrid(makeTile, tileSize, label) {
  const field = el('div', { class: 'wt-field', role: 'list', 'aria-label': label })
  const scroller = el('div', { class: 'wt-scroller', tabindex: '-1', 'data-capture-wheel': 'true' }, field)
  const tiles = new Map()
  let items = []
  let indexOf = new Map()
  const versions = new WeakMap() // what an item says, to tell whether its tile still shows it
  let layout = layoutOf(0, 1, tileSize())
  let current = 0
  let frame = 0

  const drop = (key) => {
    tiles.get(key).tile.leave()
    tiles.get(key).tile.element.remove()
    tiles.delete(key)
  }
  const isHeld = ({ tile }) => tile.isBusy() || tile.element.contains(document.activeElement)

  function versionOf(item) {
    if (!versions.has(item)) versions.set(item, JSON.stringify(item))
    return versions.get(item)
  }

  function put(index) {
    const item = items[index]
    const version = versionOf(item)
    let entry = tiles.get(item.key)
    const hadFocus = entry?.tile.element === document.activeElement
    if (entry && entry.version !== version && !entry.tile.isBusy()) {
      drop(item.key)
      entry = undefined
    }
    if (!entry) {
      entry = { tile: makeTile(item), version }
      tiles.set(item.key, entry)
      field.append(entry.tile.element)
      if (hadFocus) entry.tile.element.focus({ preventScroll: true })
    }
    const { element } = entry.tile
    element.tabIndex = index === current ? 0 : -1
    const placed = `${index} of ${items.length} in ${layout.tileWidth}, ${layout.tileHeight}`
    if (entry.placed === placed) return
    entry.placed = placed
    const { x, y } = placeOf(layout, index)
    element.style.transform = `translate(${x}px, ${y}px)`
    element.style.width = `${layout.tileWidth}px`
    element.style.height = `${layout.tileHeight}px`
    element.dataset.index = index
    element.setAttribute('aria-posinset', index + 1)
    element.setAttribute('aria-setsize', items.length)
  }

  function draw() {
    frame = 0
    if (!scroller.clientWidth) return
    layout = layoutOf(items.length, scroller.clientWidth, tileSize())
    field.style.height = `${layout.height}px`
    const [first, end] = visibleRange(layout, items.length, scroller.scrollTop, scroller.clientHeight)
    const wanted = new Set()
    for (let index = first; index < end; index += 1) wanted.add(index)
    for (const [key, entry] of tiles) {
      const index = indexOf.get(key)
      if (index !== undefined && isHeld(entry)) wanted.add(index)
      else if (index === undefined ? !entry.tile.isBusy() : !wanted.has(index)) drop(key)
    }
    if (current < items.length) wanted.add(current) // what Tab reaches
    for (const index of wanted) put(index)
  }
  const redraw = () => { frame ||= requestAnimationFrame(draw) }

  function moveTo(index) {
    current = index
    scroller.scrollTop = scrolledTo(layout, index, scroller.scrollTop, scroller.clientHeight)
    draw()
    tiles.get(items[index].key)?.tile.element.focus({ preventScroll: true })
  }

  scroller.addEventListener('scroll', redraw, { passive: true })
  scroller.addEventListener('wheel', (event) => {
    if (!event.ctrlKey && !event.metaKey) event.stopPropagation() // with these the canvas zooms
  })
  field.addEventListener('keydown', (event) => {
    const element = event.target.closest('.wt-tile')
    if (event.target !== element || event.ctrlKey || event.metaKey || event.altKey) return
    const index = Number(element.dataset.index)
    const to = movedBy(event.key, index, layout, items.length, scroller.clientHeight)
    if (to === null && event.key !== 'Enter' && event.key !== ' ') return
    event.preventDefault()
    if (to === null) tiles.get(items[index]?.key)?.tile.activate(event.key)
    else moveTo(to)
  })
  field.addEventListener('focusin', (event) => {
    const index = Number(event.target.closest('.wt-tile')?.dataset.index)
    if (!Number.isInteger(index) || index === current) return
    current = index
    redraw()
  })
  const observer = new ResizeObserver(redraw)
  observer.observe(scroller)

  return {
    element: scroller,
    show(shown) {
      items = shown
      indexOf = new Map(items.map((item, index) => [item.key, index]))
      current = Math.min(current, Math.max(0, items.length - 1))
      draw()
    },
    isBusy: () => [...tiles.values()].some(({ tile }) => tile.isBusy()),
    /** Makes every tile anew, for example with a field for its caption. */
    renew() {
      for (const [key, { tile }] of tiles) if (!tile.isBusy()) drop(key)
      draw()
    },
    close() {
      observer.disconnect()
      cancelAnimationFrame(frame)
      for (const key of [...tiles.keys()]) drop(key)
    }
  }
}
