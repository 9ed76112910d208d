// The picture in a tile of the contact sheet: a still, and for clips an animation while it is pointed at. Each is
// requested when it is needed.

import { el } from '../shared/elements.js'

const PASSING = 120 // milliseconds in view before a thumbnail is requested
const HOVER = 150 // milliseconds of pointing before a clip plays

const isCalm = () => matchMedia('(prefers-reduced-motion: reduce)').matches

export class TilePicture {
  #sample
  #want
  #missing
  #image = el('img', { alt: '', draggable: 'false' })
  #leaving = new AbortController()
  #playing = null // {stopping, url} of the animation
  #still = ''

  /** `want(id, signal)` resolves to a blob: URL, which is revoked here; `missing()` is called on status 404. */
  constructor(sample, badges, { want, missing }) {
    this.#sample = sample
    this.#want = want
    this.#missing = missing
    this.element = el('div', { class: 'wt-picture' }, this.#image, badges)
    this.#wait(PASSING, () => this.#showStill())
  }

  /** Plays while `tile` is pointed at or has the focus; a click plays and stops as well. */
  playOver(tile) {
    if (!this.#sample.moving) return
    let timer
    const soon = () => {
      clearTimeout(timer)
      if (!isCalm()) timer = this.#wait(HOVER, () => this.#play())
    }
    const over = () => {
      clearTimeout(timer)
      if (!tile.matches(':hover') && document.activeElement !== tile) this.#stop()
    }
    for (const kind of ['pointerenter', 'focus']) tile.addEventListener(kind, soon)
    for (const kind of ['pointerleave', 'blur']) tile.addEventListener(kind, over)
    this.element.addEventListener('click', () => this.toggle())
  }

  toggle() {
    if (this.#playing) this.#stop()
    else this.#play()
  }

  leave() {
    this.#stop()
    this.#leaving.abort()
    if (this.#still) URL.revokeObjectURL(this.#still)
  }

  #wait(milliseconds, react) {
    const timer = setTimeout(react, milliseconds)
    this.#leaving.signal.addEventListener('abort', () => clearTimeout(timer))
    return timer
  }

  async #load(id, signal) {
    try {
      return await this.#want(id, signal)
    } catch (error) {
      if (error.name === 'AbortError') return ''
      if (error.status === 404) this.#missing()
      this.element.replaceChildren(el('div', { class: 'wt-error wt-reason' }, error.message))
      return ''
    }
  }

  async #showStill() {
    const url = await this.#load(this.#sample.thumbnail, this.#leaving.signal)
    if (this.#leaving.signal.aborted) URL.revokeObjectURL(url)
    else if (url) {
      this.#still = url
      if (!this.#playing?.url) this.#image.src = url
    }
  }

  async #play() {
    if (this.#playing || !this.#sample.moving) return
    const mine = (this.#playing = { stopping: new AbortController(), url: '' })
    const url = await this.#load(this.#sample.moving, mine.stopping.signal)
    if (this.#playing !== mine) URL.revokeObjectURL(url)
    else if (url) {
      mine.url = url
      this.#image.src = url
    }
  }

  #stop() {
    if (!this.#playing) return
    this.#playing.stopping.abort()
    if (this.#playing.url) {
      if (this.#still) this.#image.src = this.#still
      else this.#image.removeAttribute('src')
      URL.revokeObjectURL(this.#playing.url)
    }
    this.#playing = null
  }
}
