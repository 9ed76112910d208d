// Virtual scrolling: however many items there are, only the tiles in view are in the page.

import { el } from '../shared/elements.js'
import { layoutOf, movedBy, placeOf, scrolledTo, visibleRange } from './layout.js'

export class SheetGrid {
  #makeTile
  #tileSize
  #field
  #tiles = new Map() // {tile, version, placed} by the key of its item
  #items = []
  #indexOf = new Map()
  #versions = new WeakMap() // items as JSON, to tell whether a tile still shows its item
  #layout
  #current = 0 // the tile that Tab reaches
  #frame = 0
  #observer = new ResizeObserver(() => this.#redraw())

  /**
   * `makeTile(item)` returns {element, isBusy(), leave(), activate(key)}. A tile that is busy (its caption is being
   * edited) or has the focus stays in the page wherever it lies. `tileSize()` returns {width, height, gap}.
   */
  constructor(makeTile, tileSize, label) {
    this.#makeTile = makeTile
    this.#tileSize = tileSize
    this.#layout = layoutOf(0, 1, tileSize())
    this.#field = el('div', { class: 'wt-field', role: 'list', 'aria-label': label,
      onkeydown: (event) => this.#onKey(event), onfocusin: (event) => this.#onFocus(event) })
    this.element = el('div', { class: 'wt-scroller', tabindex: '-1', 'data-capture-wheel': 'true' }, this.#field)
    this.element.addEventListener('scroll', () => this.#redraw(), { passive: true })
    this.element.addEventListener('wheel', (event) => {
      if (!event.ctrlKey && !event.metaKey) event.stopPropagation() // with Ctrl the canvas zooms
    })
    this.#observer.observe(this.element)
  }

  show(items) {
    this.#items = items
    this.#indexOf = new Map(items.map((item, index) => [item.key, index]))
    this.#current = Math.min(this.#current, Math.max(0, items.length - 1))
    this.#draw()
  }

  isBusy() {
    return [...this.#tiles.values()].some(({ tile }) => tile.isBusy())
  }

  /** Makes every tile anew, for example with a field for its caption. */
  renew() {
    for (const [key, { tile }] of this.#tiles) if (!tile.isBusy()) this.#drop(key)
    this.#draw()
  }

  close() {
    this.#observer.disconnect()
    cancelAnimationFrame(this.#frame)
    for (const key of [...this.#tiles.keys()]) this.#drop(key)
  }

  #redraw() {
    this.#frame ||= requestAnimationFrame(() => this.#draw())
  }

  #draw() {
    this.#frame = 0
    const { element } = this
    const count = this.#items.length
    if (!element.clientWidth) return
    this.#layout = layoutOf(count, element.clientWidth, this.#tileSize())
    this.#field.style.height = `${this.#layout.height}px`
    const [first, end] = visibleRange(this.#layout, count, element.scrollTop, element.clientHeight)
    const wanted = new Set()
    for (let index = first; index < end; index += 1) wanted.add(index)
    for (const [key, { tile }] of this.#tiles) {
      const index = this.#indexOf.get(key)
      const isHeld = tile.isBusy() || tile.element.contains(document.activeElement)
      if (index !== undefined && isHeld) wanted.add(index)
      else if (index === undefined ? !tile.isBusy() : !wanted.has(index)) this.#drop(key)
    }
    if (this.#current < count) wanted.add(this.#current)
    for (const index of wanted) this.#put(index)
  }

  #drop(key) {
    const { tile } = this.#tiles.get(key)
    tile.leave()
    tile.element.remove()
    this.#tiles.delete(key)
  }

  #versionOf(item) {
    if (!this.#versions.has(item)) this.#versions.set(item, JSON.stringify(item))
    return this.#versions.get(item)
  }

  /** Puts the tile of an item in its place; makes it if there is none, or one that shows an older version. */
  #put(index) {
    const item = this.#items[index]
    const version = this.#versionOf(item)
    let entry = this.#tiles.get(item.key)
    const hadFocus = entry?.tile.element === document.activeElement
    if (entry && entry.version !== version && !entry.tile.isBusy()) {
      this.#drop(item.key)
      entry = undefined
    }
    if (!entry) {
      entry = { tile: this.#makeTile(item), version }
      this.#tiles.set(item.key, entry)
      this.#field.append(entry.tile.element)
      if (hadFocus) entry.tile.element.focus({ preventScroll: true })
    }
    entry.tile.element.tabIndex = index === this.#current ? 0 : -1
    this.#place(entry, index)
  }

  #place(entry, index) {
    const { tileWidth, tileHeight } = this.#layout
    const placed = `${index} of ${this.#items.length} in ${tileWidth}, ${tileHeight}`
    if (entry.placed === placed) return
    entry.placed = placed
    const { element } = entry.tile
    const { x, y } = placeOf(this.#layout, index)
    element.style.transform = `translate(${x}px, ${y}px)`
    element.style.width = `${tileWidth}px`
    element.style.height = `${tileHeight}px`
    element.dataset.index = index
    element.setAttribute('aria-posinset', index + 1)
    element.setAttribute('aria-setsize', this.#items.length)
  }

  #moveTo(index) {
    this.#current = index
    this.element.scrollTop = scrolledTo(this.#layout, index, this.element.scrollTop, this.element.clientHeight)
    this.#draw()
    this.#tiles.get(this.#items[index].key)?.tile.element.focus({ preventScroll: true })
  }

  #onKey(event) {
    const element = event.target.closest('.wt-tile')
    if (event.target !== element || event.ctrlKey || event.metaKey || event.altKey) return
    const index = Number(element.dataset.index)
    const to = movedBy(event.key, index, this.#layout, this.#items.length, this.element.clientHeight)
    if (to === null && event.key !== 'Enter' && event.key !== ' ') return
    event.preventDefault()
    if (to === null) this.#tiles.get(this.#items[index]?.key)?.tile.activate(event.key)
    else this.#moveTo(to)
  }

  #onFocus(event) {
    const index = Number(event.target.closest('.wt-tile')?.dataset.index)
    if (!Number.isInteger(index) || index === this.#current) return
    this.#current = index
    this.#redraw()
  }
}
