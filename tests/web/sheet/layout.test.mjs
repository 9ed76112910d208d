import assert from 'node:assert/strict'
import test from 'node:test'
import { layoutOf, movedBy, placeOf, scrolledTo, visibleRange } from '../../../web/sheet/layout.js'

const TILE = { width: 100, height: 180, gap: 10 }

test('tiles fill the width', () => {
  const layout = layoutOf(1000, 340, TILE)
  assert.deepEqual([layout.columns, layout.rows, layout.tileWidth], [3, 334, 106])
  assert.equal(layout.height, 334 * 190 - 10)
  assert.deepEqual(placeOf(layout, 4), { x: 116, y: 190 })
  assert.equal(layoutOf(5, 20, TILE).columns, 1)
  assert.equal(layoutOf(0, 340, TILE).height, 0)
})

test('only what is in view is in the page, wherever one scrolls to', () => {
  const layout = layoutOf(1000, 340, TILE)
  for (let top = 0; top <= layout.height; top += 37) {
    const [first, end] = visibleRange(layout, 1000, top, 400)
    assert.ok(end - first <= 18, `${end - first} tiles`)
    for (let index = 0; index < 1000; index += 1) {
      const { y } = placeOf(layout, index)
      if (y + 180 > top && y < top + 400) assert.ok(index >= first && index < end)
    }
  }
  assert.deepEqual(visibleRange(layoutOf(0, 340, TILE), 0, 0, 400), [0, 0])
  assert.deepEqual(visibleRange(layoutOf(2, 340, TILE), 2, 9999, 400), [2, 2])
})

test('keys move through the tiles and never out of them', () => {
  const layout = layoutOf(10, 340, TILE) // three columns
  const by = (key, index) => movedBy(key, index, layout, 10, 400)
  assert.deepEqual(['ArrowRight', 'ArrowLeft', 'ArrowDown', 'ArrowUp'].map((key) => by(key, 4)), [5, 3, 7, 1])
  assert.deepEqual(['ArrowLeft', 'ArrowUp'].map((key) => by(key, 0)), [null, null])
  assert.deepEqual(['ArrowRight', 'ArrowDown'].map((key) => by(key, 9)), [null, null])
  const far = [by('Home', 7), by('End', 2), by('PageDown', 1), by('PageUp', 2), by('PageDown', 8)]
  assert.deepEqual(far, [0, 9, 7, 0, 9])
  assert.equal(by('a', 3), null)
  assert.equal(movedBy('End', 0, layout, 0, 400), null)
})

test('a tile is scrolled into view by as little as is needed', () => {
  const layout = layoutOf(100, 340, TILE)
  assert.equal(scrolledTo(layout, 0, 0, 400), 0)
  assert.equal(scrolledTo(layout, 0, 500, 400), 0)
  assert.equal(scrolledTo(layout, 6, 0, 400), 2 * 190 + 180 - 400)
  assert.equal(scrolledTo(layout, 6, 0, 100), 380)
})
