// The player of Compare Videos (two videos with a split) and of Compare Checkpoints (one grid).

import { el, stylesheet } from '../shared/elements.js'
import { ready, t } from '../shared/messages.js'
import { savedFile } from '../shared/server.js'
import { actionOf, isSame, ratioOf, splitAfterKey, splitAt, visible } from './compare_math.js'
import { createControls, showPlaying } from './controls.js'
import { VideoPair } from './video_pair.js'

const MODES = ['split', 'side', 'blink']
const NARROW = 0.15

const isMotionReduced = () => window.matchMedia('(prefers-reduced-motion: reduce)').matches

class Missing extends Error {}

/** The URL of a saved file, if it exists. Not a blob: URL, which ComfyUI's CSP forbids with --disable-api-nodes. */
async function addressOf(file, signal) {
  const address = savedFile(file)
  const response = await fetch(address, { method: 'HEAD', signal, cache: 'no-store' })
  if (!response.ok) throw new Missing(t('compare.missing', { name: file.filename }))
  return address
}

export class VideoPlayer {
  #data
  #pair
  #parts = {}
  #loading
  #mode = 'split'
  #split = 0.5
  #isTunedShown = true
  #isLooping = true
  #watcher = new IntersectionObserver((entries) => this.#pair?.setSeen(entries.at(-1).isIntersecting))

  constructor() {
    stylesheet('compare/compare.css')
    this.element = el('div', { class: 'wt-player', role: 'group' })
    this.element.addEventListener('keydown', (event) => this.#onKey(event))
    // the keydown was handled here, so ComfyUI must not see the keyup either
    this.element.addEventListener('keyup', (event) => { if (actionOf(event)) event.stopPropagation() })
    this.#watcher.observe(this.element)
  }

  /** Shows the data of video_output() in nodes/page/shown.py; a hint without data, for a node that has not run yet. */
  async show(data) {
    if (data && this.#pair && isSame(data, this.#data)) return
    this.#clear()
    this.#data = data
    const loading = (this.#loading = new AbortController())
    await ready
    if (loading.signal.aborted) return
    if (!data) return this.#say(t('compare.empty'))
    this.#say(t('compare.loading'))
    const files = data.video ? [data.video] : [data.base, data.tuned]
    try {
      const addresses = await Promise.all(files.map((file) => addressOf(file, loading.signal)))
      await this.#build(data, addresses, loading.signal)
    } catch (error) {
      if (loading.signal.aborted) return
      this.#say(error instanceof Missing ? error.message : t('compare.unreachable'), true)
    }
  }

  close() {
    this.#clear()
    this.#watcher.disconnect()
  }

  #clear() {
    this.#loading?.abort()
    this.#pair?.close()
    this.#pair = undefined
    this.#parts = {}
    this.element.replaceChildren()
    this.element.removeAttribute('tabindex')
  }

  #say(text, isError = false) {
    this.element.replaceChildren(
      el('p', { class: `wt-note ${isError ? 'wt-error' : 'wt-faint'}`, role: isError ? 'alert' : 'status' }, text),
    )
  }

  async #build(data, addresses, signal) {
    const videos = addresses.map((src) => el('video', { src, muted: true, playsinline: true, preload: 'auto' }))
    for (const video of videos) video.muted = true
    const isPair = videos.length > 1
    this.#parts = { videos, isPair, ...createControls(isPair, Boolean(data.strip), (action) => this.#do(action)) }
    this.#parts.frame = isPair ? this.#frameOf(videos, data.labels) : el('div', { class: 'wt-frame' }, ...videos)
    const { frame, left, right } = this.#parts
    this.#parts.stage = el('div', { class: 'wt-stage' }, frame, left, right)
    this.element.tabIndex = 0
    this.element.setAttribute('aria-label', t(isPair ? 'compare.pair' : 'compare.grid'))
    this.element.replaceChildren(this.#parts.stage, this.#parts.bar)
    this.#pair = new VideoPair(videos, { fps: data.fps, frames: data.frames, react: (...now) => this.#showNow(...now) })
    this.#pair.isLooping = this.#isLooping
    this.#arrange()
    const isReady = await this.#pair.ready()
    if (signal.aborted) return
    if (!isReady) {
      this.#clear()
      return this.#say(t('compare.broken'), true)
    }
    if (isMotionReduced()) this.#pair.seek(0)
    else this.#pair.play()
  }

  #frameOf(videos, labels) {
    const [base, tuned] = videos
    base.classList.add('wt-base')
    tuned.classList.add('wt-tuned')
    const handle = el('div', {
      class: 'wt-handle', role: 'slider', tabindex: 0, 'aria-label': t('compare.handle'), 'aria-valuemin': 0,
      'aria-valuemax': 100, 'aria-orientation': 'horizontal',
    })
    handle.addEventListener('keydown', (event) => {
      const split = event.ctrlKey || event.metaKey || event.altKey ? null
        : splitAfterKey(this.#split, event.key, event.shiftKey)
      if (split === null) return
      event.preventDefault()
      event.stopPropagation()
      this.#setSplit(split)
    })
    const [left, right] = ['wt-left', 'wt-right'].map((side, index) =>
      el('span', { class: `wt-label ${side}`, title: labels[index] }, labels[index]))
    Object.assign(this.#parts, { handle, left, right })
    const frame = el('div', { class: 'wt-frame' }, base, tuned, handle)
    this.#makeDraggable(frame, handle)
    return frame
  }

  #makeDraggable(frame, handle) {
    const follow = (event) => {
      const box = frame.getBoundingClientRect()
      this.#setSplit(splitAt(event.clientX, box.left, box.width))
    }
    frame.addEventListener('pointerdown', (event) => {
      if (this.#mode !== 'split' || event.button !== 0) return
      // else the node or the canvas would be dragged along
      event.preventDefault()
      event.stopPropagation()
      frame.setPointerCapture(event.pointerId)
      handle.focus({ preventScroll: true })
      follow(event)
    })
    frame.addEventListener('pointermove', (event) => {
      if (!frame.hasPointerCapture(event.pointerId)) return
      event.stopPropagation()
      follow(event)
    })
  }

  #onKey(event) {
    const action = actionOf(event)
    if (!action || !this.#pair || (MODES.includes(action) && !this.#parts.isPair)) return
    // Space on a button presses that button
    if (action === 'play' && event.target.closest?.('button')) return event.stopPropagation()
    event.preventDefault()
    event.stopPropagation()
    this.#do(action)
  }

  #do(action) {
    const pair = this.#pair
    if (action === 'play') pair.isPlaying ? pair.pause() : pair.play()
    else if (action === 'back') pair.step(-1)
    else if (action === 'forward') pair.step(1)
    else if (action === 'loop') this.#isLooping = pair.isLooping = !pair.isLooping
    else if (action === 'strip') this.#toggleStrip()
    else if (action === 'large') this.#toggleLarge()
    else if (action === 'blink' && this.#mode === 'blink') this.#isTunedShown = !this.#isTunedShown
    else this.#mode = action
    this.#arrange()
  }

  #arrange() {
    const { stage, frame, buttons, isPair, videos, left, right, handle } = this.#parts
    const mode = isPair ? this.#mode : 'single'
    // hiding the handle while it has the focus would lose the focus, and with it the keys
    if (mode !== 'split' && document.activeElement === handle) this.element.focus({ preventScroll: true })
    frame.dataset.mode = stage.dataset.mode = mode
    frame.style.setProperty('--wt-ratio', ratioOf(this.#data, mode))
    buttons.loop.setAttribute('aria-pressed', this.#pair.isLooping)
    if (!isPair) return
    for (const each of MODES) buttons[each].setAttribute('aria-pressed', each === mode)
    const shown = visible(mode, this.#isTunedShown)
    videos[0].classList.toggle('wt-hidden', !shown.base)
    videos[1].classList.toggle('wt-hidden', !shown.tuned)
    const isSplit = mode === 'split'
    left.classList.toggle('wt-hidden', !shown.base || (isSplit && this.#split < NARROW))
    right.classList.toggle('wt-hidden', !shown.tuned || (isSplit && this.#split > 1 - NARROW))
    frame.style.setProperty('--wt-split', `${this.#split * 100}%`)
    handle.setAttribute('aria-valuenow', Math.round(this.#split * 100))
    handle.setAttribute('aria-valuetext', t('compare.handleAt', { percent: Math.round(this.#split * 100) }))
  }

  #setSplit(split) {
    this.#split = split
    this.#arrange()
  }

  #showNow(frame, isPlaying) {
    const { counter, buttons } = this.#parts
    const { frames } = this.#data
    counter.textContent = t('compare.frame', { frame: String(frame + 1).padStart(String(frames).length, '0'), frames })
    showPlaying(buttons.play, isPlaying)
  }

  async #toggleStrip() {
    const { stage, buttons, frame } = this.#parts
    const shown = stage.querySelector('.wt-sheet-of-frames')
    buttons.strip.setAttribute('aria-pressed', !shown)
    frame.classList.toggle('wt-gone', !shown)
    if (shown) return shown.remove()
    this.#pair.pause()
    const place = el('div', { class: 'wt-sheet-of-frames', tabindex: 0 })
    stage.append(place)
    try {
      const src = await addressOf(this.#data.strip, this.#loading.signal)
      place.append(el('img', { src, alt: this.#data.labels.join(', ') }))
    } catch (error) {
      if (error.name !== 'AbortError') place.append(el('p', { class: 'wt-note wt-error' }, error.message))
    }
  }

  #toggleLarge() {
    if (document.fullscreenElement === this.element) document.exitFullscreen()
    else this.element.requestFullscreen?.().catch(() => {})
  }
}
