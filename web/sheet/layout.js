// Where the tiles of the contact sheet lie, which of them are in view, and where keys lead: pure, tested by
// tests/web/sheet/layout.test.mjs.

/** Columns, tile sizes and the total height of a sheet of `count` tiles that is `width` pixels wide. */
export function layoutOf(count, width, tile) {
  const columns = Math.max(1, Math.floor((width + tile.gap) / (tile.width + tile.gap)))
  const rows = Math.ceil(count / columns)
  return {
    columns,
    rows,
    gap: tile.gap,
    tileWidth: Math.max(1, Math.floor((width - tile.gap * (columns - 1)) / columns)),
    tileHeight: tile.height,
    height: Math.max(0, rows * (tile.height + tile.gap) - tile.gap)
  }
}

/** {x, y} of a tile in pixels. */
export function placeOf(layout, index) {
  return {
    x: (index % layout.columns) * (layout.tileWidth + layout.gap),
    y: Math.floor(index / layout.columns) * (layout.tileHeight + layout.gap)
  }
}

/** [first, after the last] tile that is to be in the page, with `overscan` rows above and below. */
export function visibleRange(layout, count, scrollTop, viewHeight, overscan = 1) {
  const row = layout.tileHeight + layout.gap
  const first = Math.max(0, Math.floor(scrollTop / row) - overscan)
  const last = Math.min(layout.rows, Math.ceil((scrollTop + viewHeight) / row) + overscan)
  return [Math.min(count, first * layout.columns), Math.min(count, Math.max(0, last) * layout.columns)]
}

/** The scrollTop at which a tile is in view, nearest to the present one. */
export function scrolledTo(layout, index, scrollTop, viewHeight) {
  const { y } = placeOf(layout, index)
  if (y < scrollTop || layout.tileHeight > viewHeight) return y
  return Math.max(scrollTop, y + layout.tileHeight - viewHeight)
}

/** The tile to which a key leads; null where it leads nowhere. */
export function movedBy(key, index, layout, count, viewHeight) {
  const page = Math.max(1, Math.floor(viewHeight / (layout.tileHeight + layout.gap))) * layout.columns
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -layout.columns, ArrowDown: layout.columns, PageUp: -page,
    PageDown: page, Home: -index, End: count - 1 - index }
  if (!(key in steps) || !count) return null
  const to = index + steps[key]
  if (key.startsWith('Arrow')) return to < 0 || to >= count ? null : to
  return Math.min(count - 1, Math.max(0, to))
}
