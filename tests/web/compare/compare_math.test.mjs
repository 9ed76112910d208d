import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  actionOf, clamp, correction, frameAt, isSame, ratioOf, splitAfterKey, splitAt, stepped, timeOf, visible,
} from '../../../web/compare/compare_math.js'

test('the split follows the pointer and stays in the picture', () => {
  assert.equal(splitAt(150, 100, 200), 0.25)
  assert.equal(splitAt(0, 100, 200), 0)
  assert.equal(splitAt(999, 100, 200), 1)
  assert.equal(splitAt(50, 0, 0), 0.5)
  assert.equal(clamp(NaN, 0, 1), 0)
})

test('keys move the split, and other keys do not', () => {
  assert.equal(splitAfterKey(0.5, 'ArrowLeft'), 0.48)
  assert.equal(splitAfterKey(0.5, 'ArrowUp'), 0.52)
  assert.equal(splitAfterKey(0.5, 'ArrowRight', true), 0.6)
  assert.equal(splitAfterKey(0.95, 'PageUp'), 1)
  assert.equal(splitAfterKey(0.3, 'Home'), 0)
  assert.equal(splitAfterKey(0.3, 'End'), 1)
  assert.equal(splitAfterKey(0.01, 'ArrowLeft'), 0)
  assert.equal(splitAfterKey(0.5, 'a'), null)
})

test('a hundred steps of a key lose nothing to rounding', () => {
  let split = 0
  for (let i = 0; i < 50; i++) split = splitAfterKey(split, 'ArrowRight')
  assert.equal(split, 1)
})

test('every frame is found again at its own time, at any rate', () => {
  for (const fps of [1, 12.5, 16, 23.976, 24000 / 1001, 29.97, 60, 120]) {
    for (let frame = 0; frame < 300; frame++) {
      assert.equal(frameAt(timeOf(frame, fps), fps, 300), frame)
      assert.equal(frameAt(frame / fps, fps, 300), frame, 'and at its beginning, rounded or not')
    }
  }
  assert.equal(frameAt(99, 16, 33), 32)
  assert.equal(frameAt(NaN, 16, 33), 0)
  assert.equal(frameAt(1, 16, 0), 0)
})

test('stepping ends at the ends, or goes round', () => {
  assert.equal(stepped(3, 1, 5, false), 4)
  assert.equal(stepped(4, 1, 5, false), 4)
  assert.equal(stepped(0, -1, 5, false), 0)
  assert.equal(stepped(4, 1, 5, true), 0)
  assert.equal(stepped(0, -1, 5, true), 4)
  assert.equal(stepped(0, -7, 5, true), 3)
  assert.equal(stepped(0, 1, 0, true), 0)
})

test('a drift below a frame is taken up by the rate, a larger one by seeking', () => {
  assert.deepEqual(correction(0, 16), { rate: 1 })
  assert.deepEqual(correction(NaN, 16), { rate: 1 })
  assert.deepEqual(correction(2 / 16, 16), { seek: true })
  assert.deepEqual(correction(-2 / 16, 16), { seek: true })
  assert.ok(correction(0.5 / 16, 16).rate < 1, 'ahead: slower')
  assert.ok(correction(-0.5 / 16, 16).rate > 1, 'behind: faster')
})

test('corrections bring two clocks together and keep them there', () => {
  for (const fps of [8, 16, 60]) {
    for (const start of [-1.4, -0.3, 0.7, 1.4, 20]) {
      let drift = start / fps
      for (let i = 0; i < 200; i++) {
        const next = correction(drift, fps)
        // a decoder that is 1 % too fast, asked once a frame
        drift = next.seek ? 0 : drift + (next.rate * 1.01 - 1) / fps
      }
      assert.ok(Math.abs(drift) < 0.5 / fps, `${start} frames at ${fps} fps end at ${drift * fps}`)
    }
  }
})

test('blink shows one, the other modes both', () => {
  assert.deepEqual(visible('blink', false), { base: true, tuned: false })
  assert.deepEqual(visible('blink', true), { base: false, tuned: true })
  assert.deepEqual(visible('split', true), { base: true, tuned: true })
})

test('keys with a modifier are not ours', () => {
  assert.equal(actionOf({ key: ' ' }), 'play')
  assert.equal(actionOf({ key: 'B' }), 'blink')
  assert.equal(actionOf({ key: '.' }), 'forward')
  assert.equal(actionOf({ key: 's', ctrlKey: true }), null)
  assert.equal(actionOf({ key: 'Delete' }), null)
  assert.equal(actionOf({ key: 'toString' }), null)
})

test('side by side is twice as wide', () => {
  assert.equal(ratioOf({ width: 400, height: 200 }, 'split'), 2)
  assert.equal(ratioOf({ width: 400, height: 200 }, 'side'), 4)
})

test('the same answer again is known', () => {
  assert.ok(isSame({ a: [1, { b: 2 }] }, { a: [1, { b: 2 }] }))
  assert.ok(!isSame({ a: 1 }, { a: 2 }))
  assert.ok(!isSame(undefined, { a: 2 }))
})
